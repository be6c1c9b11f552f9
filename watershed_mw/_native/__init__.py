"""What goes past Python to the kernel or the C library."""
