# The kernel's calls for sockets, for compiled modules: without an object for each buffer.
# -1 and errno where they fail; -2 where they are not at hand, and the socket's own methods do it.
cdef extern from *:
    """
    #ifdef _WIN32
    #define call_recv(fd, target, size) (-2)
    #define call_send(fd, source, size) (-2)
    #else
    #include <sys/socket.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    #define call_recv(fd, target, size) recv(fd, target, size, 0)
    #define call_send(fd, source, size) send(fd, source, size, MSG_NOSIGNAL)
    #endif
    """
    Py_ssize_t call_recv(int fd, void *target, size_t size)
    Py_ssize_t call_send(int fd, const void *source, size_t size)
