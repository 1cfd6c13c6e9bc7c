/* fork and the wait family: statuses, WNOHANG, ECHILD, waitid's fields, stops and continues, reparenting. */
#include "check.h"
#include <sys/prctl.h>
#include <sys/resource.h>

static void statuses(void) {
    int codes[] = {0, 1, 42, 255, 256 + 7};
    for (unsigned i = 0; i < 5; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(codes[i]);
        reap("child", pid);
    }
    int signals[] = {SIGKILL, SIGTERM, SIGSEGV, SIGUSR1};
    for (unsigned i = 0; i < 4; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            raise(signals[i]);
            _exit(0);
        }
        reap("signalled", pid);
    }
}

static void errors(void) {
    int status;
    TRY(waitpid(-1, &status, 0));
    TRY(waitpid(-1, &status, WNOHANG));
    TRY(waitpid(getpid(), &status, 0));
    TRY(waitpid(-1, &status, 0x7fff0000));
    TRY(wait4(-1, NULL, WNOHANG, NULL));
    siginfo_t info;
    TRY(waitid(P_ALL, 0, &info, 0));
    TRY(waitid(77, 0, &info, WEXITED));
}

static void not_yet(void) {
    int gate[2];
    pipe(gate);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        close(gate[1]);
        read(gate[0], &byte, 1);
        _exit(3);
    }
    int status = 0;
    TRY(waitpid(pid, &status, WNOHANG));
    close(gate[0]);
    close(gate[1]);
    siginfo_t info = {0};
    TRY(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
    printf("waitid: signo %d code %d status %d pid %s uid %s\n", info.si_signo, info.si_code, info.si_status,
           info.si_pid == pid ? "right" : "wrong", info.si_uid == getuid() ? "right" : "wrong");
    reap("after WNOWAIT", pid);
}

static void stops(void) {
    int gate[2];
    pipe(gate);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        raise(SIGSTOP);
        /* Its end would hide that it went on. */
        read(gate[0], &byte, 1);
        _exit(4);
    }
    int status;
    waitpid(pid, &status, WUNTRACED);
    show_status("stop", status);
    kill(pid, SIGCONT);
    waitpid(pid, &status, WCONTINUED);
    show_status("continue", status);
    write(gate[1], "x", 1);
    reap("end", pid);
    close(gate[0]);
    close(gate[1]);
}

static void groups(void) {
    pid_t one = fork();
    if (one == 0) {
        setpgid(0, 0);
        _exit(11);
    }
    setpgid(one, one);
    pid_t two = fork();
    if (two == 0)
        _exit(12);
    int status;
    printf("by group: %s\n", waitpid(-one, &status, 0) == one ? "the right child" : "wrong");
    show_status("by group", status);
    printf("by own group: %s\n", waitpid(0, &status, 0) == two ? "the right child" : "wrong");
    show_status("by own group", status);
}

static void orphan(void) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    int gate[2];
    pipe(gate);
    pid_t pid = fork();
    if (pid == 0) {
        if (fork() == 0) {
            char byte;
            close(gate[1]);
            read(gate[0], &byte, 1);
            _exit(21);
        }
        _exit(0);
    }
    reap("parent of the orphan", pid);
    close(gate[0]);
    close(gate[1]);
    int status;
    TRY_OK(waitpid(-1, &status, 0));
    show_status("orphan", status);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
}

static void ignored(void) {
    signal(SIGCHLD, SIG_IGN);
    pid_t pid = fork();
    if (pid == 0)
        _exit(5);
    TRY(waitpid(pid, NULL, 0));
    signal(SIGCHLD, SIG_DFL);
}

static volatile int shared_value = 1;

static void vforked(void) {
    pid_t pid = vfork();
    if (pid == 0) {
        shared_value = 2;
        _exit(6);
    }
    reap("vfork", pid);
    printf("memory was shared: %d\n", shared_value);
}

/* What a child has used is its parent's to see, once. */
static void usage(void) {
    struct rusage of_child, before, after, mine;
    getrusage(RUSAGE_CHILDREN, &before);
    pid_t pid = fork();
    if (pid == 0) {
        char *memory = mmap(NULL, 32 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(memory, 32 << 20, MADV_NOHUGEPAGE);
        memset(memory, 1, 32 << 20);
        munmap(memory, 32 << 20);
        for (int n = 0; n < 5; n++)
            nap(1);
        _exit(0);
    }
    TRY_OK(wait4(pid, NULL, 0, &of_child));
    getrusage(RUSAGE_CHILDREN, &after);
    getrusage(RUSAGE_SELF, &mine);
    printf("child: %s of memory, faults %s, switches %s\n", of_child.ru_maxrss >= 32 << 10 ? "32 MiB" : "less",
           of_child.ru_minflt > 0 ? "some" : "none", of_child.ru_nvcsw >= 5 ? "5 or more" : "fewer");
    printf("children: %s of memory, faults %s, switches %s\n", after.ru_maxrss >= 32 << 10 ? "32 MiB" : "less",
           after.ru_minflt > before.ru_minflt ? "more" : "as before", after.ru_nvcsw > before.ru_nvcsw ? "more" : "as before");
    printf("mine: %s of memory, faults %s\n", mine.ru_maxrss < 32 << 10 && mine.ru_maxrss > 0 ? "some" : "strange",
           mine.ru_minflt > 0 ? "some" : "none");
}

int main(void) {
    statuses();
    usage();
    errors();
    not_yet();
    stops();
    groups();
    orphan();
    ignored();
    vforked();
    struct rusage usage;
    TRY(getrusage(RUSAGE_CHILDREN, &usage));
    TRY(getrusage(7, &usage));
    for (int i = 0; i < 200; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(i & 127);
        int status;
        if (waitpid(pid, &status, 0) != pid || WEXITSTATUS(status) != (i & 127))
            printf("round %d went wrong\n", i);
    }
    puts("end");
    return 0;
}
