"""What happened, for operators: histories, causes and the repair of what was given up on."""
