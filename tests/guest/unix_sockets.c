/* AF_UNIX: streams, datagrams, sequenced packets, names, credentials, passing descriptors, ends. */
#include "check.h"

static struct sockaddr_un named(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    return address;
}

static socklen_t length_of(const char *path) { return offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1; }

static int bound(int type, const char *path) {
    int fd = socket(AF_UNIX, type, 0);
    struct sockaddr_un address = named(path);
    TRY(bind(fd, (void *)&address, length_of(path)));
    return fd;
}

static ssize_t send_fds(int socket, const int *fds, int count, const char *text) {
    char control[CMSG_SPACE(sizeof(int) * 8)] = {0};
    struct iovec part = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int) * count)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
    return sendmsg(socket, &message, 0);
}

static int receive(const char *what, int socket, size_t room, int flags, int *fds) {
    char text[256] = "", control[256];
    struct iovec part = {text, sizeof text};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = room};
    ssize_t length = recvmsg(socket, &message, flags);
    if (length < 0) {
        printf("%s: %s\n", what, strerrorname_np(errno));
        return 0;
    }
    int count = 0;
    printf("%s: %ld \"%.*s\" flags %#x", what, (long)length, (int)length, text, message.msg_flags & ~MSG_CMSG_CLOEXEC);
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_type == SCM_RIGHTS) {
            int here = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            printf(" [%d descriptors]", here);
            if (fds)
                memcpy(fds, CMSG_DATA(header), sizeof(int) * here);
            count += here;
        } else if (header->cmsg_type == SCM_CREDENTIALS) {
            struct ucred *from = (void *)CMSG_DATA(header);
            printf(" [credentials of %s uid %d]", from->pid == getpid() ? "me" : "another", from->uid);
        }
    }
    puts("");
    return count;
}

static void streams(void) {
    int server = bound(SOCK_STREAM, "sock");
    struct sockaddr_un address = named("sock");
    struct stat status;
    stat("sock", &status);
    printf("mode %o\n", status.st_mode);
    bound(SOCK_STREAM, "sock");
    int early = socket(AF_UNIX, SOCK_STREAM, 0);
    TRY(connect(early, (void *)&address, length_of("sock")));
    TRY(accept(server, NULL, NULL));
    TRY(listen(server, 1));
    TRY(connect(early, (void *)&address, length_of("sock")));
    TRY(connect(early, (void *)&address, length_of("sock")));
    struct sockaddr_un peer;
    socklen_t length = sizeof peer;
    int one = accept4(server, (void *)&peer, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
    printf("peer's name has %u bytes\n", length);
    length = sizeof peer;
    getsockname(one, (void *)&peer, &length);
    printf("own name %s, %u bytes\n", peer.sun_path, length);
    char text[64] = "";
    TRY(read(one, text, 1));
    TRY(write(early, "hello", 5));
    TRY(recv(one, text, 2, MSG_PEEK));
    TRY(recv(one, text, 64, 0));
    struct ucred who;
    length = sizeof who;
    TRY(getsockopt(early, SOL_SOCKET, SO_PEERCRED, &who, &length));
    printf("peer: %s %d %d\n", who.pid == getpid() ? "me" : "another", who.uid, who.gid);
    int type;
    length = sizeof type;
    getsockopt(one, SOL_SOCKET, SO_TYPE, &type, &length);
    printf("type %d\n", type);
    TRY(shutdown(early, SHUT_WR));
    TRY(write(early, "x", 1));
    TRY(read(one, text, 1));
    TRY(write(one, "back", 4));
    TRY(read(early, text, 64));
    close(early);
    TRY(write(one, "x", 1));
    close(one);
    /* A backlog of one holds two; the third would block. */
    int clients[3];
    for (int i = 0; i < 3; i++) {
        clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        TRY(connect(clients[i], (void *)&address, length_of("sock")));
    }
    unlink("sock");
    TRY(connect(clients[2], (void *)&address, length_of("sock")));
    close(server);
    TRY(read(clients[0], text, 1));
    write_file("plain", "");
    address = named("plain");
    TRY(connect(clients[2], (void *)&address, length_of("plain")));
    signal(SIGPIPE, SIG_DFL);
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    close(pair[1]);
    IN_CHILD("broken") { write(pair[0], "x", 1); }
    TRY(send(pair[0], "x", 1, MSG_NOSIGNAL));
}

static void datagrams(void) {
    int one = bound(SOCK_DGRAM, "one"), two = bound(SOCK_DGRAM, "two");
    struct sockaddr_un address = named("two"), from;
    socklen_t length = sizeof from;
    char text[64];
    TRY(sendto(one, "first", 5, 0, (void *)&address, length_of("two")));
    TRY(sendto(one, "second message", 14, 0, (void *)&address, length_of("two")));
    TRY(sendto(one, "", 0, 0, (void *)&address, length_of("two")));
    TRY(recvfrom(two, text, sizeof text, 0, (void *)&from, &length));
    printf("from %s\n", from.sun_path);
    TRY(recvfrom(two, text, 6, MSG_TRUNC, NULL, NULL));
    TRY(recv(two, text, 6, 0));
    TRY(recv(two, text, 6, MSG_DONTWAIT));
    TRY(send(one, "x", 1, 0));
    TRY(connect(one, (void *)&address, length_of("two")));
    TRY(send(one, "x", 1, 0));
    close(two);
    TRY(send(one, "x", 1, 0));
    unlink("one");
    unlink("two");
    int stream = socket(AF_UNIX, SOCK_STREAM, 0);
    TRY(send(stream, "x", 1, MSG_NOSIGNAL));
    TRY(recv(stream, text, 1, 0));
}

static void packets(void) {
    int pair[2];
    char text[64];
    TRY(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
    TRY(send(pair[0], "one", 3, 0));
    TRY(send(pair[0], "two!", 4, 0));
    TRY(recv(pair[1], text, 2, 0));
    TRY(recv(pair[1], text, 64, 0));
    close(pair[0]);
    TRY(recv(pair[1], text, 64, 0));
    TRY(socketpair(AF_UNIX, 77, 0, pair));
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 5, pair));
    TRY(socket(AF_UNIX, SOCK_RAW | 0x1000000, 0));
}

static void abstract(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, "\0hidden", 7);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 7;
    int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0), other = socket(AF_UNIX, SOCK_STREAM, 0);
    TRY(bind(server, (void *)&address, length));
    TRY(bind(other, (void *)&address, length));
    listen(server, 5);
    TRY(connect(client, (void *)&address, length));
    TRY(connect(other, (void *)&address, length + 1));
    close(server);
    TRY(connect(other, (void *)&address, length));
    TRY(bind(other, (void *)&address, sizeof(sa_family_t)));
    struct sockaddr_un name;
    socklen_t size = sizeof name;
    getsockname(other, (void *)&name, &size);
    printf("autobind: %u bytes, first %d\n", size, name.sun_path[0]);
}

static void passing(void) {
    int pair[2], ends[2], fds[8], got[8];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    pipe(ends);
    fds[0] = ends[1];
    fds[1] = ends[0];
    TRY(send_fds(pair[0], fds, 2, "two"));
    TRY(receive("rights", pair[1], 256, MSG_CMSG_CLOEXEC, got));
    printf("cloexec %d\n", fcntl(got[0], F_GETFD));
    write(got[0], "through", 7);
    char text[16] = "";
    TRY(read(ends[0], text, sizeof text));
    /* Too little room: the rest is dropped and closed. */
    send_fds(pair[0], fds, 2, "cut");
    receive("cut", pair[1], CMSG_SPACE(sizeof(int)), 0, got);
    send_fds(pair[0], fds, 1, "dropped");
    receive("no room", pair[1], 0, 0, NULL);
    /* Descriptors separate what bytes would join. */
    write(pair[0], "a", 1);
    send_fds(pair[0], fds, 1, "b");
    write(pair[0], "c", 1);
    receive("first", pair[1], 256, 0, got);
    receive("second", pair[1], 256, 0, got);
    receive("third", pair[1], 256, MSG_DONTWAIT, got);
    fds[0] = 999;
    TRY(send_fds(pair[0], fds, 1, "bad"));
    /* A message in flight keeps the file open; a socket can be sent through itself. */
    int other[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, other);
    fds[0] = other[0];
    send_fds(pair[0], fds, 1, "socket");
    close(other[0]);
    write(other[1], "kept", 4);
    receive("socket", pair[1], 256, 0, got);
    TRY(read(got[0], text, sizeof text));
    fds[0] = other[1];
    send_fds(got[0], fds, 1, "loop");
    close(got[0]);
    close(other[1]);
    int on = 1;
    setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
    write(pair[0], "who", 3);
    receive("credentials", pair[1], 256, 0, NULL);
    IN_CHILD("other process") { write(pair[0], "child", 5); }
    receive("child's", pair[1], 256, 0, NULL);
}

static void waiting(void) {
    int pair[2];
    char text[16];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    struct timeval limit = {0, 60000};
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    long start = now_ms();
    TRY(read(pair[0], text, 1));
    printf("receive timeout %s\n", took(start, 55));
    pid_t pid = fork();
    if (pid == 0) {
        nap(40);
        write(pair[1], "ab", 2);
        nap(40);
        write(pair[1], "cd", 2);
        _exit(0);
    }
    limit.tv_sec = 5;
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    TRY(recv(pair[0], text, 4, MSG_WAITALL));
    reap("writer", pid);
    static char block[65536];
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    long total = 0;
    ssize_t done;
    while ((done = write(pair[0], block, sizeof block)) > 0)
        total += done;
    printf("filled: %s, %s\n", strerrorname_np(errno), total >= 100000 ? "100,000 bytes or more" : "little");
}

static void waits_for(int socket, int option, int milliseconds) {
    struct timeval limit = {milliseconds / 1000, milliseconds % 1000 * 1000};
    if (setsockopt(socket, SOL_SOCKET, option, &limit, sizeof limit))
        printf("no timeout: %s\n", strerrorname_np(errno));
}

static volatile int signals;
static void count(int signal) { (void)signal; signals++; }

static void timeouts(void) {
    static char block[65536];
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    waits_for(pair[0], SO_SNDTIMEO, 60);
    waits_for(pair[0], SO_RCVTIMEO, 60);
    long start = now_ms();
    ssize_t done;
    while ((done = write(pair[0], block, sizeof block)) == sizeof block)
        ;
    printf("a full stream %s, %s\n", done >= 0 ? "takes a part" : "is full", took(start, 55));
    start = now_ms();
    while ((done = send(pair[0], block, sizeof block, 0)) > 0)
        ;
    printf("send: %s %s\n", strerrorname_np(errno), took(start, 55));
    write(pair[1], "abc", 3);
    start = now_ms();
    TRY(recv(pair[0], block, 10, MSG_WAITALL));
    printf("a part of it %s\n", took(start, 55));
    start = now_ms();
    struct iovec part = {block, 10};
    TRY(readv(pair[0], &part, 1));
    printf("readv %s\n", took(start, 55));
    start = now_ms();
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    TRY(recvmsg(pair[0], &message, 0));
    printf("recvmsg %s\n", took(start, 55));
    /* A wait with an end is not restarted. */
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    waits_for(pair[0], SO_RCVTIMEO, 5000);
    struct itimerval soon = {{0, 0}, {0, 60000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    TRY(read(pair[0], block, 1));
    setitimer(ITIMER_REAL, &soon, NULL);
    TRY(recv(pair[0], block, 1, 0));
    waits_for(pair[0], SO_SNDTIMEO, 5000);
    setitimer(ITIMER_REAL, &soon, NULL);
    TRY(write(pair[0], block, 1));
    printf("signals %d\n", signals);

    unlink("slow");
    int server = bound(SOCK_STREAM, "slow");
    struct sockaddr_un address = named("slow");
    TRY(listen(server, 0));
    waits_for(server, SO_RCVTIMEO, 60);
    start = now_ms();
    TRY(accept(server, NULL, NULL));
    printf("accept %s\n", took(start, 55));
    for (int n = 0; n < 2; n++) {
        int client = socket(AF_UNIX, SOCK_STREAM, 0);
        waits_for(client, SO_SNDTIMEO, 60);
        start = now_ms();
        TRY(connect(client, (void *)&address, length_of("slow")));
        if (n > 0)
            printf("connect %s\n", took(start, 55));
    }
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    waits_for(client, SO_SNDTIMEO, 5000);
    setitimer(ITIMER_REAL, &soon, NULL);
    TRY(connect(client, (void *)&address, length_of("slow")));
    unlink("slow");
}

/* How much of a buffer is charged for what is in it, and until when. */
static void charges(void) {
    static const int kinds[] = {SOCK_STREAM, SOCK_SEQPACKET};
    static const size_t sizes[] = {1, 64, 256, 1000, 2000};
    static char data[4096];
    for (int n = 0; n < 2; n++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            int pair[2], writes = 0, charged = -1, reads = 0;
            socketpair(AF_UNIX, kinds[n] | SOCK_NONBLOCK, 0, pair);
            while (write(pair[0], data, sizes[i]) > 0)
                writes++;
            ioctl(pair[0], TIOCOUTQ, &charged);
            printf("%zu bytes: %d writes, %d charged\n", sizes[i], writes, charged);
            /* Writable when a quarter is left. */
            struct pollfd out = {.fd = pair[0], .events = POLLOUT};
            while (poll(&out, 1, 0) == 0 && read(pair[1], data, sizes[i]) > 0)
                reads++;
            ioctl(pair[0], TIOCOUTQ, &charged);
            printf("writable after %d reads, %d charged\n", reads, charged);
            close(pair[0]);
            close(pair[1]);
        }
    int pair[2], charged = -1;
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair);
    TRY(write(pair[0], data, 1000));
    TRY(read(pair[1], data, 999));
    ioctl(pair[0], TIOCOUTQ, &charged);
    printf("%d charged\n", charged);
    TRY(read(pair[1], data, 1));
    ioctl(pair[0], TIOCOUTQ, &charged);
    printf("%d charged\n", charged);
    /* A buffer for which not all bytes are there is not sent. */
    char *edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(edge + 4096, 4096);
    TRY(write(pair[0], edge + 4000, 200));
    TRY(read(pair[1], data, 200));
    close(pair[0]);
    close(pair[1]);
}

/* Only streams send the signal. */
static void broken_pipes(void) {
    static const int kinds[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    signal(SIGPIPE, count);
    for (int n = 0; n < 3; n++) {
        int pair[2];
        signals = 0;
        socketpair(AF_UNIX, kinds[n], 0, pair);
        TRY(shutdown(pair[0], SHUT_WR));
        TRY(write(pair[0], "x", 1));
        TRY(send(pair[0], "x", 1, 0));
        TRY(send(pair[0], "x", 1, MSG_NOSIGNAL));
        close(pair[1]);
        TRY(write(pair[0], "x", 1));
        printf("signals %d\n", signals);
        close(pair[0]);
    }
    signal(SIGPIPE, SIG_IGN);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    streams();
    signal(SIGPIPE, SIG_IGN);
    datagrams();
    packets();
    abstract();
    passing();
    waiting();
    timeouts();
    broken_pipes();
    charges();
    return 0;
}
