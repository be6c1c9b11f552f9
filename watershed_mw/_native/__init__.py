"""Direct calls to the kernel and the C library that bypass Python."""
