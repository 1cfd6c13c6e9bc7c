/* Users, groups, capabilities, process groups, sessions, resource limits, prctl. */
#include "check.h"
#include <grp.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static void show_ids(const char *what) {
    uid_t real, effective, saved;
    gid_t greal, geffective, gsaved;
    getresuid(&real, &effective, &saved);
    getresgid(&greal, &geffective, &gsaved);
    printf("%s: %d %d %d, %d %d %d\n", what, real, effective, saved, greal, geffective, gsaved);
}

static const char *effective_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data))
        return strerrorname_np(errno);
    return data[0].effective | data[1].effective ? "some" : "none";
}

static void users(void) {
    IN_CHILD("dropping for good") {
        gid_t groups[] = {7, 8};
        TRY(setgroups(2, groups));
        TRY(getgroups(0, NULL));
        TRY(setgid(1001));
        TRY(setuid(1000));
        show_ids("dropped");
        printf("capabilities %s\n", effective_capabilities());
        TRY(setuid(0));
        TRY(setgid(0));
        TRY(setgroups(2, groups));
        TRY(seteuid(0));
        TRY(setuid(1000));
        TRY(kill(1, SIGTERM));
        TRY(setpriority(PRIO_PROCESS, 0, -5));
        TRY(sethostname("x", 1));
        TRY(chroot("/"));
    }
    IN_CHILD("for a while") {
        TRY(seteuid(1000));
        show_ids("lowered");
        printf("capabilities %s\n", effective_capabilities());
        TRY(setegid(5));
        TRY(seteuid(0));
        printf("capabilities %s\n", effective_capabilities());
        TRY(setresuid(1, 2, 3));
        show_ids("three");
        TRY(setresuid(-1, 3, -1));
        TRY(setresuid(-1, 4, -1));
        TRY(setreuid(3, 1));
        show_ids("swapped");
    }
    IN_CHILD("kept") {
        prctl(PR_SET_KEEPCAPS, 1);
        setuid(1000);
        printf("effective %s\n", effective_capabilities());
        struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct data[2];
        syscall(SYS_capget, &header, data);
        printf("permitted %s\n", data[0].permitted ? "some" : "none");
        data[0].effective = 1u << CAP_KILL;
        TRY(syscall(SYS_capset, &header, data));
        data[0].inheritable = data[0].permitted = 0xffffffff;
        data[1].permitted = 0xffffffff;
        TRY(syscall(SYS_capset, &header, data));
        header.version = 1;
        TRY(syscall(SYS_capget, &header, data));
        TRY(header.version == _LINUX_CAPABILITY_VERSION_3 ? 0 : -1);
    }
    TRY(setfsuid(1000));
    TRY(setfsuid(0));
    TRY(setfsuid(-1));
}

static void groups(void) {
    IN_CHILD("sessions") {
        TRY(setpgid(0, 0));
        TRY(getpgrp() == getpid() ? 0 : -1);
        TRY(setsid());
        pid_t child = fork();
        if (child == 0) {
            TRY(setsid() == getpid() ? 0 : -1);
            TRY(setpgid(0, 0));
            nap(300);
            _exit(0);
        }
        nap(60);
        TRY(setpgid(child, getpgrp()));
        TRY(getsid(child) == child ? 0 : -1);
        TRY(getpgid(0x3ffffff));
        TRY(setpgid(0, -1));
        TRY(setpgid(0, 0x3ffffff));
        waitpid(child, NULL, 0);
        child = fork();
        if (child == 0) {
            char self[PATH_MAX];
            self[readlink("/proc/self/exe", self, sizeof self - 1)] = 0;
            char *args[] = {self, "nap", NULL}, *none[] = {NULL};
            execve(self, args, none);
        }
        nap(100);
        TRY(setpgid(child, child));
        waitpid(child, NULL, 0);
    }
}

static volatile int *counter;
static void count_warning(int signal) { (void)signal; ++*counter; }

static void limits(void) {
    struct rlimit limit;
    IN_CHILD("descriptors") {
        limit = (struct rlimit){10, 20};
        TRY(setrlimit(RLIMIT_NOFILE, &limit));
        while (dup(0) >= 0)
            ;
        printf("full: %s\n", strerrorname_np(errno));
        TRY(open(".", O_RDONLY));
        TRY(fcntl(0, F_DUPFD, 15));
        limit = (struct rlimit){30, 20};
        TRY(setrlimit(RLIMIT_NOFILE, &limit));
    }
    IN_CHILD("file size") {
        limit = (struct rlimit){1000, 2000};
        setrlimit(RLIMIT_FSIZE, &limit);
        signal(SIGXFSZ, SIG_IGN);
        static char block[900];
        int fd = open("limited", O_RDWR | O_CREAT | O_TRUNC, 0600);
        TRY(write(fd, block, 900));
        TRY(write(fd, block, 900));
        TRY(write(fd, block, 900));
        TRY(ftruncate(fd, 1500));
        signal(SIGXFSZ, SIG_DFL);
        write(fd, block, 1);
    }
    IN_CHILD("address space") {
        limit = (struct rlimit){64 << 20, 64 << 20};
        setrlimit(RLIMIT_AS, &limit);
        TRY_OK(mmap(NULL, 128 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        TRY_OK(mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    }
    IN_CHILD("processor time") {
        limit = (struct rlimit){1, 3};
        setrlimit(RLIMIT_CPU, &limit);
        long start = now_ms();
        while (now_ms() - start < 8000)
            ;
    }
    volatile int *warnings = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    counter = warnings;
    IN_CHILD("warned and killed") {
        limit = (struct rlimit){1, 2};
        setrlimit(RLIMIT_CPU, &limit);
        signal(SIGXCPU, count_warning);
        IN_CHILD("a child inherits the limit, not the time") {
            getrlimit(RLIMIT_CPU, &limit);
            printf("%ld %ld\n", (long)limit.rlim_cur, (long)limit.rlim_max);
        }
        long start = now_ms();
        while (now_ms() - start < 12000)
            ;
    }
    printf("warnings %d\n", *warnings);
    limit = (struct rlimit){5, 4};
    TRY(setrlimit(RLIMIT_CORE, &limit));
    TRY(getrlimit(99, &limit));
    struct rlimit old;
    limit = (struct rlimit){0, 1000};
    TRY(prlimit(0, RLIMIT_CORE, &limit, &old));
    TRY(prlimit(getpid(), RLIMIT_CORE, NULL, &old));
    printf("core %ld %ld\n", (long)old.rlim_cur, (long)old.rlim_max);
    TRY(prlimit(0x3ffffff, RLIMIT_CORE, NULL, &old));
    TRY(setpriority(PRIO_PROCESS, 0, 5));
    TRY(getpriority(PRIO_PROCESS, 0));
    TRY(getpriority(77, 0));
    TRY(sched_getscheduler(0));
    struct sched_param parameter = {.sched_priority = 5};
    TRY(sched_setscheduler(0, 99, &parameter));
    TRY(sched_get_priority_max(SCHED_FIFO));
    cpu_set_t set;
    TRY(sched_getaffinity(0, sizeof set, &set));
    printf("processors %s\n", CPU_COUNT(&set) > 0 && CPU_COUNT(&set) == sysconf(_SC_NPROCESSORS_ONLN) ? "agree" : "differ");
    CPU_ZERO(&set);
    TRY(sched_setaffinity(0, sizeof set, &set));
}

static void controls(void) {
    char name[17] = "";
    TRY(prctl(PR_SET_NAME, "a name that is too long"));
    TRY(prctl(PR_GET_NAME, name));
    printf("[%s]\n", name);
    show_file("/proc/self/comm");
    TRY(prctl(PR_GET_DUMPABLE));
    TRY(prctl(PR_SET_DUMPABLE, 0));
    TRY(prctl(PR_SET_DUMPABLE, 7));
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    TRY(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    TRY(prctl(PR_CAPBSET_READ, CAP_KILL));
    TRY(prctl(PR_CAPBSET_READ, 500));
    TRY(prctl(PR_SET_PDEATHSIG, 100));
    TRY(prctl(99999));
    int ends[2];
    pipe(ends);
    pid_t middle = fork();
    if (middle == 0) {
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(ends[0]);
            write(ends[1], "r", 1);
            nap(20000);
            _exit(0);
        }
        nap(100);
        _exit(0);
    }
    close(ends[1]);
    reap("parent", middle);
    char byte;
    long start = now_ms();
    TRY(read(ends[0], &byte, 1));
    TRY(read(ends[0], &byte, 1));
    printf("died with its parent: %d\n", now_ms() - start < 15000);
}

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1) {
        nap(300);
        return 0;
    }
    users();
    groups();
    limits();
    controls();
    return 0;
}
