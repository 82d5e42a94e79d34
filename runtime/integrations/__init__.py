"""Where other libraries meet this one; each module is imported by those that use it."""
