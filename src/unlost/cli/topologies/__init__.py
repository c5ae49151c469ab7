"""The commands of ``unlost topology``, one module each."""
