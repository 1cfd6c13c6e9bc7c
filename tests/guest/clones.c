/* clone's flags, clone3, pidfds, what a process finds about itself in /proc, registers across the kernel. */
#include "check.h"
#include <immintrin.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sys/pidfd.h>

static char stack[65536] __attribute__((aligned(16)));
static volatile int value, tid_word;

static int change(void *argument) {
    value = 5;
    chdir("/");
    close(*(int *)argument);
    return 3;
}

static void flags(void) {
    char where[PATH_MAX], now[PATH_MAX];
    getcwd(where, sizeof where);
    int fd = dup(0);
    reap("nothing shared", clone(change, stack + sizeof stack, SIGCHLD, &fd));
    printf("value %d, directory %s, descriptor %s\n", value, strcmp(getcwd(now, sizeof now), where) ? "changed" : "same",
           fcntl(fd, F_GETFD) < 0 ? "closed" : "open");
    reap("all shared", clone(change, stack + sizeof stack, SIGCHLD | CLONE_VM | CLONE_FS | CLONE_FILES, &fd));
    printf("value %d, directory %s, descriptor %s\n", value, strcmp(getcwd(now, sizeof now), where) ? "changed" : "same",
           fcntl(fd, F_GETFD) < 0 ? "closed" : "open");
    chdir(where);
    pid_t parent_tid = 0;
    int status;
    pid_t pid = clone(change, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_PARENT_SETTID, &fd, &parent_tid);
    printf("no signal: tid %s, ", parent_tid == pid ? "stored" : "not stored");
    printf("waitpid %s, ", waitpid(pid, &status, 0) < 0 ? strerrorname_np(errno) : "found");
    printf("__WALL %s\n", waitpid(pid, &status, __WALL) == pid ? "found" : strerrorname_np(errno));
    TRY(syscall(SYS_clone, CLONE_THREAD, NULL, NULL, NULL, NULL));
    TRY(syscall(SYS_clone, CLONE_SIGHAND, NULL, NULL, NULL, NULL));
    TRY(syscall(SYS_clone, CLONE_NEWNS | CLONE_FS, NULL, NULL, NULL, NULL));
    int pidfd = -1;
    struct clone_args args = {.flags = CLONE_PIDFD, .pidfd = (uintptr_t)&pidfd, .exit_signal = SIGCHLD};
    pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) {
        nap(100);
        _exit(9);
    }
    printf("clone3: %s, pidfd %s\n", pid > 0 ? "ok" : strerrorname_np(errno), pidfd >= 0 ? "open" : "missing");
    struct pollfd ready = {.fd = pidfd, .events = POLLIN};
    TRY(poll(&ready, 1, 0));
    TRY(poll(&ready, 1, 5000));
    siginfo_t info;
    TRY(waitid(P_PIDFD, pidfd, &info, WEXITED));
    printf("status %d\n", info.si_status);
    TRY(pidfd_send_signal(pidfd, SIGTERM, NULL, 0));
    pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    int other = pidfd_open(pid, 0);
    TRY(pidfd_send_signal(other, SIGKILL, NULL, 0));
    reap("by pidfd", pid);
    TRY(pidfd_open(pid, 0));
    TRY(pidfd_open(-1, 0));
    args.exit_signal = 900;
    TRY(syscall(SYS_clone3, &args, sizeof args));
    TRY(syscall(SYS_clone3, &args, 8));
}

static void *clear_tid(void *unused) { return unused; }

/* Vector and x87 state must come through system calls, signals, forks and other threads' use of the processor. */
static volatile int signals;
static void disturb(int signal) {
    (void)signal;
    volatile double x = 1.0;
    for (int i = 0; i < 10; i++)
        x = x * 1.5 + 2;
    __asm__ volatile("vzeroall" ::: "memory");
    signals++;
}

__attribute__((target("avx2"))) static int vectors(int rounds) {
    __m256i a = _mm256_set_epi64x(1, 2, 3, 4);
    int wrong = 0;
    for (int i = 0; i < rounds; i++) {
        long result;
        __m256i b = a;
        __asm__ volatile("syscall" : "=a"(result), "+x"(b) : "0"(SYS_getppid) : "rcx", "r11", "memory");
        long out[4];
        _mm256_storeu_si256((void *)out, b);
        wrong += out[0] != 4 || out[3] != 1;
    }
    return wrong;
}

static void *churn(void *unused) {
    for (int i = 0; i < 200; i++) {
        disturb(0);
        sched_yield();
    }
    return unused;
}

static void state(void) {
    if (!__builtin_cpu_supports("avx2")) {
        puts("vectors: 0 wrong, signals came");
    } else {
        signal(SIGALRM, disturb);
        struct itimerval often = {{0, 2000}, {0, 2000}}, off = {{0, 0}, {0, 0}};
        pthread_t thread;
        pthread_create(&thread, NULL, churn, NULL);
        setitimer(ITIMER_REAL, &often, NULL);
        int wrong = 0;
        while (signals < 20)
            wrong += vectors(100);
        setitimer(ITIMER_REAL, &off, NULL);
        pthread_join(thread, NULL);
        printf("vectors: %d wrong, signals came\n", wrong);
    }
    unsigned short control = 0x27f, seen = 0;
    unsigned mxcsr = 0x5f80, mxcsr_seen = 0;
    __asm__ volatile("fldcw %0; ldmxcsr %1" ::"m"(control), "m"(mxcsr));
    IN_CHILD("control words go to the child") {
        __asm__ volatile("fnstcw %0; stmxcsr %1" : "=m"(seen), "=m"(mxcsr_seen));
        printf("%#x %#x\n", seen, mxcsr_seen);
    }
    raise(SIGURG);
    __asm__ volatile("fnstcw %0; stmxcsr %1" : "=m"(seen), "=m"(mxcsr_seen));
    printf("%#x %#x\n", seen, mxcsr_seen);
    control = 0x37f;
    mxcsr = 0x1f80;
    __asm__ volatile("fldcw %0; ldmxcsr %1" ::"m"(control), "m"(mxcsr));
    /* All general registers but rax, rcx and r11 come through a call. */
    long out[6];
    __asm__ volatile("mov $1, %%rbx; mov $2, %%r12; mov $3, %%r13; mov $4, %%r14; mov $5, %%r15; mov $6, %%r8;"
                     "mov %1, %%eax; syscall;"
                     "mov %%rbx, 0(%0); mov %%r12, 8(%0); mov %%r13, 16(%0); mov %%r14, 24(%0); mov %%r15, 32(%0); mov %%r8, 40(%0)"
                     :
                     : "r"(out), "i"(SYS_getppid)
                     : "rax", "rbx", "rcx", "r8", "r11", "r12", "r13", "r14", "r15", "memory");
    printf("registers %ld %ld %ld %ld %ld %ld\n", out[0], out[1], out[2], out[3], out[4], out[5]);
}

static void about_self(void) {
    char text[8192], path[PATH_MAX];
    int fd = open("/proc/self/cmdline", O_RDONLY);
    ssize_t length = read(fd, text, sizeof text);
    printf("cmdline ends with zero: %d\n", length > 0 && text[length - 1] == 0);
    length = readlink("/proc/self/exe", path, sizeof path);
    printf("exe: %.*s\n", 7, path + length - 7 + 1);
    getcwd(text, sizeof text);
    path[readlink("/proc/self/cwd", path, sizeof path)] = 0;
    printf("cwd %s\n", strcmp(path, text) ? "differs" : "agrees");
    const char *fields[] = {"Name:", "Umask:", "State:", "Tgid:", "Pid:", "PPid:", "TracerPid:", "Uid:", "Gid:", "FDSize:", "Groups:", "VmPeak:", "VmSize:",
                            "VmRSS:", "Threads:", "SigQ:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:", "SigCgt:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:",
                            "CapAmb:", "NoNewPrivs:", "Seccomp:", "Cpus_allowed:", "voluntary_ctxt_switches:"};
    fd = open("/proc/self/status", O_RDONLY);
    length = read(fd, text, sizeof text - 1);
    text[length] = 0;
    for (unsigned i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!strstr(text, fields[i]))
            printf("status has no %s\n", fields[i]);
    FILE *stat_file = fopen("/proc/self/stat", "r");
    fgets(text, sizeof text, stat_file);
    int spaces = 0;
    for (char *at = strrchr(text, ')'); *at; at++)
        spaces += *at == ' ';
    printf("stat has %d fields after the name\n", spaces);
    FILE *maps = fopen("/proc/self/maps", "r");
    int lines = 0, bad = 0, heap = 0, stack_seen = 0, vdso = 0, code = 0;
    while (fgets(text, sizeof text, maps)) {
        unsigned long start, end, offset, inode;
        unsigned major, minor;
        char permissions[5];
        lines++;
        bad += sscanf(text, "%lx-%lx %4s %lx %x:%x %lu", &start, &end, permissions, &offset, &major, &minor, &inode) != 7 || start >= end;
        heap += strstr(text, "[heap]") != NULL;
        stack_seen += strstr(text, "[stack]") != NULL;
        vdso += strstr(text, "[vdso]") != NULL;
        code += start <= (unsigned long)about_self && (unsigned long)about_self < end && strcmp(permissions, "r-xp") == 0;
    }
    printf("maps: bad %d heap %d stack %d vdso %d code %d\n", bad, heap > 0, stack_seen, vdso, code);
    struct stat link;
    fd = open("/dev/null", O_WRONLY);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    lstat(path, &link);
    text[readlink(path, text, sizeof text)] = 0;
    printf("fd link %s mode %o\n", text, link.st_mode);
    TRY_OK(open(path, O_RDONLY));
    TRY(access("/proc/self/fd/999", F_OK));
    TRY(access("/proc/999999", F_OK));
    TRY(open("/proc/self/status", O_WRONLY));
    TRY(mkdir("/proc/x", 0755));
    TRY(unlink("/proc/self/status"));
    const char *files[] = {"/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/uptime", "/proc/loadavg", "/proc/version", "/proc/mounts", "/proc/filesystems",
                           "/proc/self/mountinfo", "/proc/self/limits", "/proc/self/environ", "/proc/self/statm", "/proc/self/cgroup", "/proc/self/auxv",
                           "/proc/self/io", "/proc/self/oom_score_adj", "/proc/sys/kernel/pid_max", "/proc/sys/kernel/ostype", "/proc/sys/vm/overcommit_memory",
                           "/proc/self/task", "/proc/self/ns/pid", "/proc/thread-self/comm", "/proc/self/net/unix"};
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++)
        if (access(files[i], F_OK))
            printf("no %s\n", files[i]);
    show_file("/proc/sys/kernel/ostype");
}

/* Containers have no CAP_SYS_ADMIN: the host's process gives it up. */
static void namespaces(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2];
    syscall(SYS_capget, &header, caps);
    caps[0].effective &= ~(1u << CAP_SYS_ADMIN);
    caps[0].permitted &= ~(1u << CAP_SYS_ADMIN);
    caps[0].inheritable &= ~(1u << CAP_SYS_ADMIN);
    TRY(syscall(SYS_capset, &header, caps));
    const char *kinds[] = {"ipc", "mnt", "net", "pid", "pid_for_children", "user", "uts"};
    char path[64], text[64], expected[64];
    struct stat named, opened;
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
        text[readlink(path, text, sizeof text - 1)] = 0;
        int fd = open(path, O_RDONLY);
        stat(path, &named);
        fstat(fd, &opened);
        snprintf(expected, sizeof expected, "%s:[%lu]", i == 4 ? "pid" : kinds[i], (unsigned long)opened.st_ino);
        printf("%s: named by its number %d, one file %d, mode %o, links %ld\n", kinds[i], strcmp(text, expected) == 0,
               named.st_dev == opened.st_dev && named.st_ino == opened.st_ino, opened.st_mode, (long)opened.st_nlink);
        TRY(open(path, O_RDWR));
        TRY(read(fd, text, 1));
        TRY(ioctl(fd, 0xb703));
        TRY(fchmod(fd, 0777));
        TRY(setns(fd, 0));
        TRY(setns(fd, CLONE_NEWCGROUP));
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        text[readlink(path, text, sizeof text - 1)] = 0;
        printf("descriptor shows the same %d\n", strcmp(text, expected) == 0);
        close(fd);
    }
    TRY(setns(0, 0));
    TRY(setns(999, 0));
    int self = pidfd_open(getpid(), 0);
    TRY(setns(self, 0));
    TRY(setns(self, CLONE_NEWUTS | CLONE_NEWIPC));
    TRY(setns(self, CLONE_NEWUTS | CLONE_VM));
}

/* Who may not make namespaces is told so before what kind of namespace there is. */
static void no_rights(void) {
    IN_CHILD("without rights") {
        TRY(setresuid(1000, 1000, 1000));
        struct clone_args args = {.flags = CLONE_NEWCGROUP, .exit_signal = SIGCHLD};
        TRY(syscall(SYS_clone3, &args, sizeof args));
        args.flags = CLONE_NEWUTS;
        TRY(syscall(SYS_clone3, &args, sizeof args));
    }
}

/* kcmp(2), whose numbers are 0 for a file, 1 memory, 2 tables of files, 3 directories, 4 handlers. */
static void same_or_not(void) {
    pid_t self = getpid(), pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    int one = dup(1), other = open("/", O_PATH);
    for (int kind = 1; kind < 5; kind++) {
        TRY(syscall(SYS_kcmp, self, self, kind, 0, 0));
        printf("child: %s\n", syscall(SYS_kcmp, self, pid, kind, 0, 0) > 0 ? "another" : "the same");
    }
    TRY(syscall(SYS_kcmp, self, pid, 0, one, 1));
    long way = syscall(SYS_kcmp, self, self, 0, one, other), back = syscall(SYS_kcmp, self, self, 0, other, one);
    printf("order %s\n", way + back == 3 && way != back ? "ok" : "bad");
    printf("the child has no such file: %ld\n", syscall(SYS_kcmp, self, pid, 0, 1, other));
    TRY(syscall(SYS_kcmp, self, self, 0, 99, 99));
    TRY(syscall(SYS_kcmp, self, self, 77, 0, 0));
    TRY(syscall(SYS_kcmp, self, 30000, 0, 0, 0));
    kill(pid, SIGKILL);
    reap("child", pid);
    close(one);
    close(other);
}

int main(void) {
    no_rights();
    same_or_not();
    flags();
    pthread_t thread;
    pthread_create(&thread, NULL, clear_tid, NULL);
    pthread_join(thread, NULL);
    tid_word = 1;
    printf("tid address %s\n", syscall(SYS_set_tid_address, &tid_word) == getpid() ? "ok" : "wrong");
    state();
    about_self();
    namespaces();
    TRY(syscall(9999));
    TRY(syscall(SYS_gettid) == getpid() ? 0 : -1);
    return 0;
}
