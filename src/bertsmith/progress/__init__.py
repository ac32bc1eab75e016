"""What people see of the events: live displays in terminals and notebooks, lines in files and pipes."""
