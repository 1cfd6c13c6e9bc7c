/* Pseudo-terminals: the line discipline, signals from keys, sizes, sessions, job control, hang-ups. */
#include "check.h"
#include <pty.h>
#include <termios.h>

static int master, slave;

static void show(const char *what, int fd) {
    char text[512];
    nap(30);
    ssize_t length = read(fd, text, sizeof text);
    printf("%s: ", what);
    if (length < 0)
        printf("%s", strerrorname_np(errno));
    for (ssize_t i = 0; i < length; i++)
        printf(text[i] < 32 || text[i] == 127 ? "<%d>" : "%c", text[i]);
    puts(length == 0 ? "(end)" : "");
}

static void type(const char *keys) { write(master, keys, strlen(keys)); }

static void set_mode(tcflag_t on, tcflag_t off) {
    struct termios mode;
    tcgetattr(slave, &mode);
    mode.c_lflag = (mode.c_lflag | on) & ~off;
    tcsetattr(slave, TCSANOW, &mode);
}

static void discipline(void) {
    struct termios mode;
    TRY(tcgetattr(slave, &mode));
    printf("input %#x output %#x local %#x\n", mode.c_iflag, mode.c_oflag, mode.c_lflag);
    for (int i = 0; i < 13; i++)
        printf("%d ", mode.c_cc[i]);
    puts("");
    int flags = fcntl(slave, F_GETFL);
    fcntl(slave, F_SETFL, flags | O_NONBLOCK);
    fcntl(master, F_SETFL, O_NONBLOCK);
    type("abc");
    show("before the line ends", slave);
    type("d\r");
    show("line", slave);
    show("echo", master);
    type("wrong\177\177\177\177\177right\r");
    show("erased", slave);
    show("echo", master);
    type("kill\25kept\r");
    show("killed", slave);
    show("echo", master);
    type("two words\27one\r");
    show("word erased", slave);
    show("echo", master);
    type("\26\3literal\r");
    show("literal next", slave);
    show("echo", master);
    type("half\4");
    show("end of file in a line", slave);
    type("\4");
    show("end of file", slave);
    show("echo", master);
    write(slave, "out\nput\t.\n", 10);
    show("output", master);
    set_mode(0, ECHO);
    type("silent\n");
    show("line", slave);
    show("no echo", master);
    set_mode(0, ICANON);
    type("x");
    show("raw byte", slave);
    tcgetattr(slave, &mode);
    cfmakeraw(&mode);
    tcsetattr(slave, TCSANOW, &mode);
    type("\r\3\4");
    show("raw", slave);
    write(slave, "\n", 1);
    show("raw output", master);
    type("lost");
    nap(20);
    TRY(tcflush(slave, TCIFLUSH));
    show("flushed", slave);
    mode.c_cc[VMIN] = 0;
    mode.c_cc[VTIME] = 1;
    tcsetattr(slave, TCSANOW, &mode);
    fcntl(slave, F_SETFL, flags);
    long start = now_ms();
    char byte;
    TRY(read(slave, &byte, 1));
    printf("VTIME %s\n", took(start, 90));
    int waiting;
    type("1234");
    nap(20);
    TRY(ioctl(slave, FIONREAD, &waiting));
    printf("waiting %d\n", waiting);
    tcflush(slave, TCIFLUSH);
}

static void sizes(void) {
    struct winsize size = {.ws_row = 10, .ws_col = 20};
    TRY(ioctl(master, TIOCSWINSZ, &size));
    size.ws_row = 0;
    TRY(ioctl(slave, TIOCGWINSZ, &size));
    printf("%d %d\n", size.ws_row, size.ws_col);
    TRY(isatty(slave));
    TRY(isatty(0));
    pid_t group;
    TRY(ioctl(slave, TIOCGPGRP, &group));
}

static volatile int last;
static void note(int signal) { last = signal; }

static const char *caught(void) {
    for (int i = 0; i < 200 && !last; i++)
        nap(5);
    const char *name = last ? sigabbrev_np(last) : "nothing";
    last = 0;
    return name;
}

static void session(void) {
    int ready[2];
    pipe(ready);
    pid_t leader = fork();
    if (leader == 0) {
        close(master);
        TRY(setsid() == getpid() ? 0 : -1);
        TRY(ioctl(slave, TIOCSCTTY, 0));
        TRY(tcgetpgrp(slave) == getpgrp() ? 0 : -1);
        TRY(tcgetsid(slave) == getsid(0) ? 0 : -1);
        int own = open("/dev/tty", O_RDWR);
        printf("/dev/tty %s\n", own >= 0 ? "opens" : strerrorname_np(errno));
        signal(SIGINT, note);
        signal(SIGQUIT, note);
        signal(SIGTSTP, note);
        signal(SIGWINCH, note);
        signal(SIGHUP, note);
        write(ready[1], "x", 1);
        printf("^C: %s\n", caught());
        write(ready[1], "x", 1);
        printf("^\\: %s\n", caught());
        write(ready[1], "x", 1);
        printf("^Z: %s\n", caught());
        write(ready[1], "x", 1);
        printf("size: %s\n", caught());
        /* A job in the background is stopped when it reads, and when it writes if the terminal says so. */
        pid_t job = fork();
        if (job == 0) {
            setpgid(0, 0);
            signal(SIGTTIN, SIG_DFL);
            char byte;
            read(slave, &byte, 1);
            _exit(1);
        }
        setpgid(job, job);
        int status;
        waitpid(job, &status, WUNTRACED);
        show_status("background reader", status);
        kill(job, SIGKILL);
        waitpid(job, &status, 0);
        job = fork();
        if (job == 0) {
            setpgid(0, 0);
            signal(SIGTTOU, SIG_DFL);
            struct termios mode;
            tcgetattr(slave, &mode);
            tcsetattr(slave, TCSANOW, &mode);
            _exit(1);
        }
        setpgid(job, job);
        waitpid(job, &status, WUNTRACED);
        show_status("background tcsetattr", status);
        kill(job, SIGKILL);
        waitpid(job, &status, 0);
        job = fork();
        if (job == 0) {
            setpgid(0, 0);
            signal(SIGTTIN, SIG_IGN);
            char byte;
            int result = read(slave, &byte, 1);
            printf("ignoring reader: %d %s\n", result, strerrorname_np(errno));
            _exit(0);
        }
        setpgid(job, job);
        waitpid(job, &status, 0);
        signal(SIGTTOU, SIG_IGN);
        job = fork();
        if (job == 0) {
            setpgid(0, 0);
            tcsetpgrp(slave, getpgrp());
            signal(SIGINT, SIG_DFL);
            write(ready[1], "x", 1);
            nap(5000);
            _exit(1);
        }
        waitpid(job, &status, 0);
        show_status("foreground job", status);
        tcsetpgrp(slave, getpgrp());
        TRY(tcsetpgrp(slave, 1));
        write(ready[1], "x", 1);
        printf("hang-up: %s\n", caught());
        char byte;
        TRY(read(slave, &byte, 1));
        TRY(write(slave, &byte, 1));
        _exit(0);
    }
    char byte;
    struct winsize size = {.ws_row = 30, .ws_col = 70};
    struct termios mode;
    tcgetattr(master, &mode);
    mode.c_lflag |= ISIG | ICANON | ECHO;
    mode.c_iflag |= ICRNL;
    tcsetattr(master, TCSANOW, &mode);
    const char *keys[] = {"\3", "\34", "\32", NULL, "\3"};
    for (int i = 0; i < 5; i++) {
        read(ready[0], &byte, 1);
        nap(20);
        if (keys[i])
            type(keys[i]);
        else
            ioctl(master, TIOCSWINSZ, &size);
    }
    read(ready[0], &byte, 1);
    close(slave);
    close(master);
    reap("leader", leader);
}

int main(void) {
    char name[64];
    TRY(openpty(&master, &slave, name, NULL, NULL));
    printf("name %.9s\n", name);
    unsigned number;
    TRY(ioctl(master, TIOCGPTN, &number) == 0 && number == (unsigned)atoi(name + 9) ? 0 : -1);
    struct stat status;
    fstat(slave, &status);
    printf("major %u mode %o\n", (unsigned)(status.st_rdev >> 8), status.st_mode & ~0777);
    discipline();
    sizes();
    session();
    TRY(openpty(&master, &slave, NULL, NULL, NULL));
    close(slave);
    fcntl(master, F_SETFL, O_NONBLOCK);
    char byte;
    TRY(read(master, &byte, 1));
    int locked = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    ioctl(locked, TIOCGPTN, &number);
    snprintf(name, sizeof name, "/dev/pts/%u", number);
    TRY(open(name, O_RDWR | O_NOCTTY));
    return 0;
}
