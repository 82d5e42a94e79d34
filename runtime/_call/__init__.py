"""What a call says: its arguments, checked and in plain numbers."""
