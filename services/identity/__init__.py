"""Who people are: logging in with a provider of OpenID Connect, and what we give them to show for it."""
