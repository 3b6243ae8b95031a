"""The page: shop, console and time machine in the browser."""
