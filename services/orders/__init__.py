"""Orders: reserve, pay or lose it. The example that every other service imitates."""
