/* The load generator of the benchmark: WebSocket clients over loopback, driven by epoll in one thread.
 *
 * It measures servers and must cost them nothing that a browser would not: frames are masked once, before the clock
 * runs, and what comes back is parsed (lengths, FIN, control frames) but not copied. The payload of a frame, compressed
 * or not, comes from a file. Arguments are name=value pairs after the mode; load.py knows which.
 *
 *   echo       `window` messages in flight on each connection: a whole window leaves in one write, and the next one
 *              when the last message of it has come back
 *   open       one opening handshake after another; each connection is then reset
 *   churn      the same, with one echoed message and a closing handshake
 *   idle       connections held open, each after `messages` echoed ones, until standard input ends; PINGs are answered
 *   broadcast  the first connection sends a message, every connection must receive it
 *
 * Nothing waits for longer than LIMIT seconds. Whatever is not as expected ends the program with status 1 and one line
 * on standard error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#ifndef WITHOUT_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

enum { LIMIT = 20, EVENTS = 256, PER_ADDRESS = 20000, HEAD_SIZE = 8192 };
enum { TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

/* The sample of RFC 6455, section 1.3: the answer to it is known. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

struct options {
    int port, connections, window, messages, rounds, opcode;
    bool tls, compressed;
    double seconds;
    size_t size; /* of an echoed message; unknown where it comes back compressed */
    const char *path, *offer, *payload;
};

struct connection {
    int fd;
    bool wants_to_write;
#ifndef WITHOUT_TLS
    SSL *ssl;
#endif
    /* The frame being received. */
    uint8_t head[10], control[125];
    uint8_t have, need, control_have;
    uint64_t left;
    /* The message being received. */
    uint8_t opcode;
    bool compressed;
    uint64_t length;
    /* What is still to be sent: the tail of the burst, then an answer to a PING. */
    size_t unsent;
    uint8_t pong[131], pong_length;
    uint64_t sent_at;
    unsigned messages;
    bool closed;
};

static struct options options = {.connections = 1, .window = 1, .opcode = BINARY, .seconds = 1, .path = "/", .offer = ""};
static struct connection *connections;
static uint8_t *burst; /* `window` frames */
static size_t burst_length, frame_length;
static uint8_t buffer[1 << 18];
static int poller;
static uint64_t received; /* messages on all connections */
static void (*on_message)(struct connection *);
static bool stdin_ended;

/* --- small things ----------------------------------------------------------------------------------------------- */

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "load: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        fail("out of memory for %zu * %zu bytes", count, size);
    return memory;
}

static uint64_t now(void) /* nanoseconds */
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* --- times: a histogram of 64 buckets for each power of two, so that it is right to 1.6 percent ------------------- */

static uint64_t buckets[64 * 64], times;

static void note_time(uint64_t nanoseconds)
{
    int power = 63 - __builtin_clzll(nanoseconds | 64);
    buckets[power * 64 + ((nanoseconds >> (power - 6)) & 63)]++;
    times++;
}

static void forget_times(void)
{
    memset(buckets, 0, sizeof buckets);
    times = 0;
}

static double time_at(double share) /* microseconds */
{
    uint64_t seen = 0, wanted = (uint64_t)(share * (double)times);
    for (int index = 0; index < 64 * 64; index++)
        if ((seen += buckets[index]) > wanted)
            return (double)(64 + index % 64) * (double)(1ull << (index / 64)) / 64 / 1e3;
    return 0;
}

/* --- sockets, with and without TLS -------------------------------------------------------------------------------- */

#ifndef WITHOUT_TLS
static SSL_CTX *context;

static void start_tls(struct connection *c)
{
    if (!context) {
        context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    }
    c->ssl = SSL_new(context);
    SSL_set_fd(c->ssl, c->fd);
    if (SSL_connect(c->ssl) != 1)
        fail("expected a TLS handshake, got: %s", ERR_error_string(ERR_get_error(), NULL));
}

static ssize_t tls_result(struct connection *c, int result, const char *action)
{
    if (result > 0)
        return result;
    int error = SSL_get_error(c->ssl, result);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        return 0;
    fail("%s over TLS on connection %td of %d: error %d, %s", action, c - connections, options.connections, error,
         error == SSL_ERROR_ZERO_RETURN ? "the server ended it" : ERR_error_string(ERR_get_error(), NULL));
}
#endif

/* Bytes written; 0 when the socket takes none now. */
static ssize_t put(struct connection *c, const void *data, size_t length)
{
#ifndef WITHOUT_TLS
    if (c->ssl)
        return tls_result(c, SSL_write(c->ssl, data, length < 1 << 30 ? (int)length : 1 << 30), "sending");
#endif
    ssize_t count = send(c->fd, data, length, MSG_NOSIGNAL);
    if (count < 0 && errno != EAGAIN)
        fail("sending on connection %td of %d: %s", c - connections, options.connections, strerror(errno));
    return count < 0 ? 0 : count;
}

/* Bytes read; 0 when there are none now. */
static ssize_t take(struct connection *c, void *data, size_t length)
{
#ifndef WITHOUT_TLS
    if (c->ssl)
        return tls_result(c, SSL_read(c->ssl, data, (int)length), "receiving");
#endif
    ssize_t count = recv(c->fd, data, length, 0);
    if (count == 0)
        fail("connection %td of %d: the server has ended it, %u messages were echoed", c - connections,
             options.connections, c->messages);
    if (count < 0 && errno != EAGAIN)
        fail("receiving on connection %td of %d: %s", c - connections, options.connections, strerror(errno));
    return count < 0 ? 0 : count;
}

static void put_all(struct connection *c, const void *data, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t count = put(c, (const uint8_t *)data + done, length - done);
        if (count == 0)
            fail("the server took %zu of %zu bytes in %d s", done, length, LIMIT);
        done += (size_t)count;
    }
}

/* Frees the port at once, without a TIME_WAIT that the next thousands of connections would run into. */
static void reset(struct connection *c)
{
    struct linger at_once = {.l_onoff = 1};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(c->fd);
#ifndef WITHOUT_TLS
    SSL_free(c->ssl);
#endif
}

/* --- frames ------------------------------------------------------------------------------------------------------- */

static size_t masked_frame(uint8_t *to, uint8_t first, const uint8_t *payload, size_t length, uint32_t key)
{
    uint8_t *at = to;
    *at++ = first;
    if (length < 126) {
        *at++ = (uint8_t)(0x80 | length);
    } else {
        int bytes = length < 65536 ? 2 : 8;
        *at++ = bytes == 2 ? 0xfe : 0xff;
        for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8)
            *at++ = (uint8_t)((uint64_t)length >> shift);
    }
    uint8_t mask[4];
    memcpy(mask, &key, 4);
    memcpy(at, mask, 4);
    at += 4;
    for (size_t index = 0; index < length; index++)
        at[index] = payload[index] ^ mask[index % 4];
    return (size_t)(at + length - to);
}

static void build_burst(void)
{
    FILE *file = fopen(options.payload, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        fail("the payload's file %s: %s", options.payload, strerror(errno));
    size_t length = (size_t)ftell(file);
    uint8_t *payload = allocate(length + 1, 1);
    rewind(file);
    if (fread(payload, 1, length, file) != length)
        fail("the payload's file %s cannot be read", options.payload);
    fclose(file);
    burst = allocate((size_t)options.window, length + 14);
    uint32_t key = 2463534242u;
    for (int index = 0; index < options.window; index++) {
        key ^= key << 13, key ^= key >> 17, key ^= key << 5; /* a key of its own for each */
        uint8_t first = (uint8_t)(0x80 | (options.compressed ? 0x40 : 0) | options.opcode);
        frame_length = masked_frame(burst + burst_length, first, payload, length, key);
        burst_length += frame_length;
    }
    free(payload);
}

static void send_pong(struct connection *c)
{
    ssize_t count = put(c, c->pong, c->pong_length);
    if (count && count != c->pong_length)
        fail("an answer to a PING was torn after %zd bytes", count);
    if (count)
        c->pong_length = 0;
}

static void on_control(struct connection *c)
{
    int opcode = c->head[0] & 15;
    if (opcode == PING)
        c->pong_length = (uint8_t)masked_frame(c->pong, 0x80 | PONG, c->control, c->control_have, 0x3d21fa37);
    else if (opcode == CLOSE)
        c->closed = true;
    if (opcode == PING && !c->unsent)
        send_pong(c);
}

static void on_end_of_message(struct connection *c)
{
    if (c->opcode != options.opcode)
        fail("expected a message with opcode %d, got opcode %d", options.opcode, c->opcode);
    if (!c->compressed && c->length != options.size)
        fail("expected an echo of %zu bytes, got %ju", options.size, (uintmax_t)c->length);
    c->length = 0;
    c->opcode = 0;
    c->messages++;
    received++;
    if (on_message)
        on_message(c);
}

static void on_end_of_frame(struct connection *c)
{
    c->have = 0;
    c->need = 2;
    if (c->head[0] & 8)
        on_control(c);
    else if (c->head[0] & 0x80)
        on_end_of_message(c);
    c->control_have = 0;
}

static void on_head(struct connection *c)
{
    uint8_t opcode = c->head[0] & 15;
    c->left = c->head[1];
    if (c->need > 2) {
        c->left = 0;
        for (int index = 2; index < c->need; index++)
            c->left = c->left << 8 | c->head[index];
    }
    if (opcode & 8) {
        if (c->left > sizeof c->control)
            fail("a control frame of %ju bytes", (uintmax_t)c->left);
        return;
    }
    if ((opcode == 0) == (c->opcode == 0))
        fail("a frame with opcode %d %s a message", opcode, c->opcode ? "inside" : "without");
    if (opcode) {
        c->opcode = opcode;
        c->compressed = c->head[0] & 0x40;
    }
    if (c->compressed && !*options.offer)
        fail("a compressed frame, and compression was not offered");
    c->length += c->left;
}

static void feed(struct connection *c, const uint8_t *data, size_t length)
{
    const uint8_t *end = data + length;
    while (data < end) {
        if (c->have < c->need) {
            c->head[c->have++] = *data++;
            if (c->have == 2) {
                if (c->head[1] & 0x80)
                    fail("a server's frame must not be masked");
                c->need = c->head[1] == 126 ? 4 : c->head[1] == 127 ? 10 : 2;
            }
            if (c->have < c->need)
                continue;
            on_head(c);
        }
        size_t count = (size_t)(end - data) < c->left ? (size_t)(end - data) : c->left;
        if (c->head[0] & 8) {
            memcpy(c->control + c->control_have, data, count);
            c->control_have = (uint8_t)(c->control_have + count);
        }
        data += count;
        c->left -= count;
        if (!c->left)
            on_end_of_frame(c);
    }
}

/* --- opening ------------------------------------------------------------------------------------------------------ */

static void connect_to_server(struct connection *c, int number)
{
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    struct sockaddr_in own = {.sin_family = AF_INET};
    struct timeval limit = {.tv_sec = LIMIT};
    int yes = 1;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(number / PER_ADDRESS));
    *c = (struct connection){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .need = 2};
    if (c->fd < 0)
        fail("a socket for connection %d of %d: %s", number, options.connections, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    /* More connections than one address has ports for come from several. */
    if (number >= PER_ADDRESS && bind(c->fd, (struct sockaddr *)&own, sizeof own))
        fail("binding connection %d: %s", number, strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server))
        fail("connecting to port %d, connection %d of %d: %s", options.port, number, options.connections,
             strerror(errno));
#ifndef WITHOUT_TLS
    if (options.tls)
        start_tls(c);
#endif
}

static const char *request(void)
{
    static char text[HEAD_SIZE];
    if (!*text)
        snprintf(text, sizeof text,
                 "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
                 "Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, "
                 "like Gecko) Chrome/140.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: http%s://127.0.0.1:%d\r\n"
                 "Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
                 "Accept-Language: en-US,en;q=0.9\r\nSec-WebSocket-Key: " KEY "\r\n%s%s%s\r\n",
                 options.path, options.port, options.tls ? "s" : "", options.port,
                 *options.offer ? "Sec-WebSocket-Extensions: " : "", options.offer, *options.offer ? "\r\n" : "");
    return text;
}

static void check_answer(char *answer)
{
    if (strncmp(answer, "HTTP/1.1 101 ", 13))
        fail("expected HTTP/1.1 101, got: %.*s", (int)strcspn(answer, "\r\n"), answer);
    if (!strstr(answer, ACCEPT))
        fail("expected the Sec-WebSocket-Accept " ACCEPT " in: %s", answer);
    if (*options.offer && !strstr(answer, "permessage-deflate"))
        fail("expected permessage-deflate to be accepted, got: %s", answer);
}

static void upgrade(struct connection *c)
{
    static char answer[HEAD_SIZE];
    size_t have = 0;
    char *end = NULL;
    put_all(c, request(), strlen(request()));
    while (!end) {
        ssize_t count = take(c, answer + have, sizeof answer - 1 - have);
        if (count == 0)
            fail("expected HTTP/1.1 101 within %d s, got %zu bytes: %s", LIMIT, have, answer);
        have += (size_t)count;
        answer[have] = 0;
        end = strstr(answer, "\r\n\r\n");
        if (!end && have == sizeof answer - 1)
            fail("expected an answer's head of less than %d bytes", HEAD_SIZE);
    }
    size_t head = (size_t)(end - answer) + 4;
    end[2] = 0;
    check_answer(answer);
    feed(c, (uint8_t *)answer + head, have - head);
}

static void open_connection(struct connection *c, int number)
{
    connect_to_server(c, number);
    upgrade(c);
}

/* One message and its echo, on a socket that blocks. */
static void exchange(struct connection *c)
{
    unsigned before = c->messages;
    put_all(c, burst, frame_length);
    while (c->messages == before) {
        ssize_t count = take(c, buffer, sizeof buffer);
        if (count == 0)
            fail("expected the echo of a message within %d s", LIMIT);
        feed(c, buffer, (size_t)count);
        if (c->closed)
            fail("expected the echo of a message, got a Close");
    }
}

/* --- the loop ----------------------------------------------------------------------------------------------------- */

static void want_to_write(struct connection *c, bool wanted)
{
    if (c->wants_to_write == wanted)
        return;
    c->wants_to_write = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void flush(struct connection *c)
{
    if (c->unsent)
        c->unsent -= (size_t)put(c, burst + burst_length - c->unsent, c->unsent);
    if (!c->unsent && c->pong_length)
        send_pong(c);
    want_to_write(c, c->unsent || c->pong_length);
}

static void send_burst(struct connection *c)
{
    c->unsent = burst_length;
    c->sent_at = now();
    flush(c);
}

static void on_ready(struct connection *c)
{
    ssize_t count;
    do {
        count = take(c, buffer, sizeof buffer);
        feed(c, buffer, (size_t)count);
        if (c->closed)
            fail("connection %td of %d: the server sent a Close with code %d after %u messages", c - connections,
                 options.connections, c->control[0] << 8 | c->control[1], c->messages);
    } while (count && options.tls); /* what OpenSSL has read, epoll does not tell of */
    if (c->unsent || c->pong_length)
        flush(c);
}

/* Serves what is ready; with a time limit (milliseconds) something has to be. */
static void turn(int limit)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, limit);
    if (count < 0 && errno != EINTR)
        fail("epoll_wait: %s", strerror(errno));
    if (count == 0 && limit > 0)
        fail("nothing came for %d s, %ju messages had", LIMIT, (uintmax_t)received);
    for (int index = 0; index < count; index++)
        if (events[index].data.ptr)
            on_ready(events[index].data.ptr);
        else
            stdin_ended = read(0, buffer, sizeof buffer) <= 0;
}

static void watch(struct connection *c)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
}

static void open_all(void)
{
    connections = allocate((size_t)options.connections, sizeof *connections);
    for (int number = 0; number < options.connections; number++) {
        open_connection(&connections[number], number);
        for (int message = 0; message < options.messages; message++)
            exchange(&connections[number]);
        watch(&connections[number]);
        if (number % EVENTS == 0) /* PINGs of those that have been open for long */
            turn(0);
    }
}

/* The caller reads the server's CPU time between the two lines. */
static void wait_for_start(void)
{
    char line[16];
    puts("start");
    if (!fgets(line, sizeof line, stdin))
        fail("expected a line on standard input, got its end");
}

static void print_result(uint64_t messages, uint64_t nanoseconds)
{
    printf("{\"messages\": %ju, \"seconds\": %.9f, \"p50\": %.3f, \"p99\": %.3f}\n", (uintmax_t)messages,
           (double)nanoseconds / 1e9, time_at(0.50), time_at(0.99));
}

/* --- the modes ---------------------------------------------------------------------------------------------------- */

static uint64_t deadline;
static int busy; /* connections with messages in flight */

static void on_echo(struct connection *c)
{
    if (c->messages % (unsigned)options.window)
        return;
    uint64_t time = now();
    note_time(time - c->sent_at);
    if (time < deadline)
        send_burst(c);
    else
        busy--;
}

/* Ends when the last message in flight is back, so that a server's CPU time is that of these messages and no others. */
static uint64_t run_echo(double seconds)
{
    uint64_t begin = now();
    deadline = begin + (uint64_t)(seconds * 1e9);
    received = 0;
    forget_times();
    busy = options.connections;
    for (int number = 0; number < options.connections; number++)
        send_burst(&connections[number]);
    while (busy)
        turn(LIMIT * 1000);
    return now() - begin;
}

static void echo(void)
{
    open_all();
    on_message = on_echo;
    run_echo(options.seconds / 5);
    wait_for_start();
    uint64_t time = run_echo(options.seconds);
    print_result(received, time);
}

static void close_properly(struct connection *c)
{
    uint8_t frame[8];
    size_t length = masked_frame(frame, 0x80 | CLOSE, (const uint8_t *)"\x03\xe8", 2, 0x3d21fa37);
    put_all(c, frame, length);
    while (!c->closed) {
        ssize_t count = take(c, buffer, sizeof buffer);
        if (count == 0)
            fail("expected the peer's Close within %d s", LIMIT);
        feed(c, buffer, (size_t)count);
    }
}

static void open_one_after_another(bool churn)
{
    uint64_t begin = now(), time, count = 0;
    connections = allocate(1, sizeof *connections);
    do {
        open_connection(connections, 0);
        if (churn) {
            exchange(connections);
            close_properly(connections);
        }
        reset(connections);
        count++;
        time = now();
    } while (time - begin < (uint64_t)(options.seconds * 1e9));
    printf("{\"handshakes\": %ju, \"seconds\": %.9f}\n", (uintmax_t)count, (double)(time - begin) / 1e9);
}

static void idle(void)
{
    struct epoll_event event = {.events = EPOLLIN};
    open_all();
    puts("ready");
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event);
    while (!stdin_ended)
        turn(-1);
}

static unsigned round_number;

static void on_broadcast(struct connection *c)
{
    if (c->messages != round_number)
        fail("round %u: connection %td has %u messages", round_number, c - connections, c->messages);
}

static uint64_t run_broadcast(int rounds)
{
    uint64_t begin = now();
    forget_times();
    for (int number = 0; number < rounds; number++) {
        received = 0;
        round_number++;
        send_burst(&connections[0]);
        while (received < (uint64_t)options.connections)
            turn(LIMIT * 1000);
        note_time(now() - connections[0].sent_at);
    }
    return now() - begin;
}

static void broadcast(void)
{
    open_all();
    on_message = on_broadcast;
    run_broadcast(options.rounds / 5 + 1);
    wait_for_start();
    uint64_t time = run_broadcast(options.rounds);
    print_result((uint64_t)options.rounds, time);
}

/* --- the command line --------------------------------------------------------------------------------------------- */

static void set_option(char *argument)
{
    char *value = strchr(argument, '=');
    if (!value)
        fail("expected name=value, got: %s", argument);
    *value++ = 0;
    if (!strcmp(argument, "port"))
        options.port = atoi(value);
    else if (!strcmp(argument, "path"))
        options.path = value;
    else if (!strcmp(argument, "connections"))
        options.connections = atoi(value);
    else if (!strcmp(argument, "window"))
        options.window = atoi(value);
    else if (!strcmp(argument, "messages"))
        options.messages = atoi(value);
    else if (!strcmp(argument, "rounds"))
        options.rounds = atoi(value);
    else if (!strcmp(argument, "seconds"))
        options.seconds = atof(value);
    else if (!strcmp(argument, "size"))
        options.size = (size_t)atoll(value);
    else if (!strcmp(argument, "text"))
        options.opcode = atoi(value) ? TEXT : BINARY;
    else if (!strcmp(argument, "tls"))
        options.tls = atoi(value);
    else if (!strcmp(argument, "offer"))
        options.offer = value;
    else if (!strcmp(argument, "payload"))
        options.payload = value;
    else
        fail("there is no option %s", argument);
}

static void prepare(void)
{
    struct rlimit files, more = {.rlim_cur = 1 << 17, .rlim_max = 1 << 17};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &more)) /* root may */
        setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    setvbuf(stdout, NULL, _IOLBF, 0);
    poller = epoll_create1(EPOLL_CLOEXEC);
    options.compressed = *options.offer;
#ifdef WITHOUT_TLS
    if (options.tls)
        fail("compiled without TLS, because OpenSSL's headers were missing");
#endif
    if (options.payload)
        build_burst();
}

int main(int count, char **arguments)
{
    const char *mode = count > 1 ? arguments[1] : "";
    for (int index = 2; index < count; index++)
        set_option(arguments[index]);
    prepare();
    if (!strcmp(mode, "echo"))
        echo();
    else if (!strcmp(mode, "open"))
        open_one_after_another(false);
    else if (!strcmp(mode, "churn"))
        open_one_after_another(true);
    else if (!strcmp(mode, "idle"))
        idle();
    else if (!strcmp(mode, "broadcast"))
        broadcast();
    else
        fail("expected one of echo, open, churn, idle, broadcast, got: %s", mode);
    return 0;
}
