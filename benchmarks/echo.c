/* A WebSocket echo server for measuring clients: no TLS, no extension, any path.

   It is trusted to cost the clients nothing but what the protocol asks for: each client frame comes back unmasked with the
   same first byte, and a Close frame ends the connection. It prints its port, serves on one core, and ends with its
   standard input. It does not check what a client sends beyond what it needs: its clients are our own programs. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_SIZE (1 << 18)

struct buffer {
    uint8_t *data;
    size_t start, end, room;
};

struct connection {
    int fd, open, ending;
    uint32_t events;
    struct buffer in, out;
};

static int poller;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint8_t *reserve(struct buffer *buffer, size_t size) {
    if (buffer->start == buffer->end) buffer->start = buffer->end = 0;
    if (buffer->room - buffer->end < size && buffer->start) {
        memmove(buffer->data, buffer->data + buffer->start, buffer->end - buffer->start);
        buffer->end -= buffer->start;
        buffer->start = 0;
    }
    if (buffer->room - buffer->end < size) {
        buffer->room = 2 * (buffer->end + size);
        buffer->data = realloc(buffer->data, buffer->room);
        if (!buffer->data) die("realloc");
    }
    return buffer->data + buffer->end;
}

/* --- the opening handshake: SHA-1 (RFC 3174) and base64 ------------------------------------------------------------ */

static uint32_t rotated(uint32_t word, int by) { return word << by | word >> (32 - by); }

static void sha1(const uint8_t *text, size_t size, uint8_t digest[20]) {
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t padded[192] = {0};
    size_t blocks = (size + 8) / 64 + 1;
    memcpy(padded, text, size); /* a key and the GUID are 60 bytes */
    padded[size] = 0x80;
    for (int i = 0; i < 8; i++) padded[blocks * 64 - 1 - i] = (uint8_t)((uint64_t)size * 8 >> 8 * i);
    for (size_t block = 0; block < blocks; block++) {
        uint32_t w[80];
        for (int i = 0; i < 16; i++) {
            memcpy(&w[i], padded + block * 64 + i * 4, 4);
            w[i] = ntohl(w[i]);
        }
        for (int i = 16; i < 80; i++) w[i] = rotated(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 ? b ^ c ^ d : i < 60 ? (b & c) | (b & d) | (c & d) : b ^ c ^ d;
            uint32_t k = i < 20 ? 0x5A827999 : i < 40 ? 0x6ED9EBA1 : i < 60 ? 0x8F1BBCDC : 0xCA62C1D6;
            uint32_t next = rotated(a, 5) + f + e + k + w[i];
            e = d, d = c, c = rotated(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = (uint8_t)(h[i / 4] >> (24 - i % 4 * 8));
}

static int handshake(struct connection *connection) {
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    struct buffer *in = &connection->in;
    uint8_t *head = in->data + in->start, *end = memmem(head, in->end - in->start, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    char *key = strcasestr((char *)head, "\r\nsec-websocket-key:");
    if (!key) die("expected a Sec-WebSocket-Key");
    for (key += 20; *key == ' ';) key++;
    uint8_t text[61], digest[21] = {0}, accept[29] = {0};
    memcpy(text, key, 24);
    memcpy(text + 24, guid, 36);
    sha1(text, 60, digest);
    for (int i = 0; i < 7; i++) {
        uint32_t bits = (uint32_t)digest[i * 3] << 16 | (uint32_t)digest[i * 3 + 1] << 8 | digest[i * 3 + 2];
        for (int j = 0; j < 4; j++) accept[i * 4 + j] = (uint8_t)letters[bits >> (18 - 6 * j) & 63];
    }
    accept[27] = '=';
    connection->out.end += (size_t)sprintf((char *)reserve(&connection->out, 256),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
        accept);
    in->start += (size_t)(end + 4 - head);
    return connection->open = 1;
}

/* --- frames -------------------------------------------------------------------------------------------------------- */

static int frame(struct connection *connection) {
    struct buffer *in = &connection->in;
    uint8_t *data = in->data + in->start;
    size_t there = in->end - in->start, head = 6;
    if (there < 2) return 0;
    uint64_t size = data[1] & 0x7F;
    head += size == 126 ? 2 : size == 127 ? 8 : 0;
    if (there < head) return 0;
    if (size >= 126) {
        int bytes = size == 126 ? 2 : 8;
        size = 0;
        for (int i = 0; i < bytes; i++) size = size << 8 | data[2 + i];
    }
    if (there < head + size) {
        reserve(in, head + size - there);
        return 0;
    }
    uint8_t *out = reserve(&connection->out, size + 10), *key = data + head - 4;
    size_t header = head - 4;
    memcpy(out, data, header);
    out[1] &= 0x7F;
    uint64_t wide, word;
    uint8_t twice[8];
    memcpy(twice, key, 4);
    memcpy(twice + 4, key, 4);
    memcpy(&wide, twice, 8);
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        memcpy(&word, data + head + i, 8);
        word ^= wide;
        memcpy(out + header + i, &word, 8);
    }
    for (; i < size; i++) out[header + i] = data[head + i] ^ key[i & 3];
    connection->out.end += header + size;
    connection->ending |= (data[0] & 0x0F) == 8;
    in->start += head + size;
    return 1;
}

static void forget(struct connection *connection) {
    close(connection->fd);
    free(connection->in.data);
    free(connection->out.data);
    free(connection);
}

static int flush(struct connection *connection) {
    struct buffer *out = &connection->out;
    while (out->start < out->end) {
        ssize_t sent = write(connection->fd, out->data + out->start, out->end - out->start);
        if (sent < 0 && errno == EAGAIN) break;
        if (sent <= 0) return 0;
        out->start += (size_t)sent;
    }
    uint32_t events = EPOLLIN | (out->start < out->end ? EPOLLOUT : 0u);
    if (events != connection->events) {
        struct epoll_event event = {.events = connection->events = events, .data.ptr = connection};
        epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event);
    }
    if (connection->ending && out->start == out->end) shutdown(connection->fd, SHUT_WR);
    return 1;
}

static int serve(struct connection *connection, uint32_t events) {
    if (events & ~(uint32_t)EPOLLOUT) {
        ssize_t got = read(connection->fd, reserve(&connection->in, READ_SIZE), READ_SIZE);
        if (got == 0 || (got < 0 && errno != EAGAIN)) return 0;
        if (got > 0) connection->in.end += (size_t)got;
        if (connection->open || handshake(connection))
            while (frame(connection)) {}
    }
    return flush(connection);
}

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 64)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.data.ptr = &one;
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event ready[16];
        int count = epoll_wait(poller, ready, 16, -1);
        for (int i = 0; i < count; i++) {
            if (ready[i].data.ptr == &one) return 0;
            if (ready[i].data.ptr) {
                if (!serve(ready[i].data.ptr, ready[i].events)) forget(ready[i].data.ptr);
                continue;
            }
            struct connection *connection = calloc(1, sizeof *connection);
            if (!connection) die("calloc");
            connection->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            event = (struct epoll_event){.events = connection->events = EPOLLIN, .data.ptr = connection};
            epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &event);
        }
    }
}
