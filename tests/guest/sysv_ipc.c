/* System V shared memory, semaphores and message queues. Identifiers are not printed: on the host others may have some. */
#include "check.h"
#include <grp.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
    struct seminfo *info;
};

static key_t key(int n) { return 0x43000000 + (getpid() & 0xffff) * 16 + n; }
static long gone(long result, int *id) {
    *id = result;
    return result < 0 ? -1 : 0;
}
static const char *recent(time_t when) { return when == 0 ? "never" : time(NULL) - when < 30 ? "now" : "wrong"; }
static const char *whose(pid_t pid) { return pid == 0 ? "nobody" : pid == getpid() ? "mine" : pid == getppid() ? "parent" : "other"; }

/* Whether the line with an identifier is in a file of /proc/sysvipc, and some of its columns. */
static void listed(const char *file, int id, int columns) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/sysvipc/%s", file);
    FILE *list = fopen(path, "r");
    if (!list || !fgets(line, sizeof line, list)) {
        printf("%s: not there\n", path);
        return;
    }
    printf("%s", line);
    while (fgets(line, sizeof line, list)) {
        int found, mode;
        long numbers[3] = {-1, -1, -1};
        char *at = line + 10;
        int length = 0;
        if (sscanf(at, "%d %o%n", &found, &mode, &length) < 2 || found != id)
            continue;
        at += length;
        printf("%s mode %o:", file, mode);
        for (int n = 0; n < columns; n++) {
            numbers[0] = strtol(at, &at, 10);
            printf(" %ld", numbers[0]);
        }
        puts("");
    }
    fclose(list);
}

static void show_segment(int id) {
    struct shmid_ds status;
    if (shmctl(id, IPC_STAT, &status)) {
        printf("status: %s\n", strerrorname_np(errno));
        return;
    }
    printf("size %zu mode %o attached %lu times %s, %s, %s by %s, %s owner %d %d\n", status.shm_segsz, status.shm_perm.mode,
           (long)status.shm_nattch, recent(status.shm_atime), recent(status.shm_dtime), recent(status.shm_ctime),
           whose(status.shm_cpid), whose(status.shm_lpid), status.shm_perm.uid == geteuid(), status.shm_perm.cgid == getegid());
}

static void segments(void) {
    int id, other;
    TRY(shmget(key(1), 100, 0));
    TRY(shmget(key(1), 0, IPC_CREAT | 0600));
    TRY(gone(shmget(key(1), 5000, IPC_CREAT | 0640), &id));
    TRY(shmget(key(1), 5000, IPC_CREAT | IPC_EXCL | 0640));
    TRY(shmget(key(1), 5001, 0));
    TRY(gone(shmget(key(1), 100, 0), &other));
    printf("same %d\n", id == other);
    show_segment(id);
    listed("shm", id, 1);
    char *one = shmat(id, NULL, 0), *two = shmat(id, NULL, SHM_RDONLY);
    strcpy(one, "shared");
    printf("%s, last page %d\n", two, one[8191]);
    show_segment(id);
    TRY(mprotect(two, 4096, PROT_READ | PROT_WRITE));
    /* In one piece: Linux counts the pieces. */
    TRY(mprotect(one, 8192, PROT_READ));
    TRY(mprotect(one, 8192, PROT_READ | PROT_WRITE));
    IN_CHILD("child") {
        show_segment(id);
        strcpy(one, "from the child");
        TRY(shmdt(two));
        TRY(shmdt(two));
        show_segment(id);
    }
    printf("%s\n", two);
    show_segment(id);
    IN_CHILD("write to a read-only attachment") { *two = 1; }
    TRY_OK((long)shmat(id, one, 0));
    TRY_OK((long)shmat(id, one + 1, 0));
    TRY_OK((long)shmat(id, NULL, SHM_REMAP));
    TRY(shmat(id, two + 77, SHM_RND | SHM_REMAP) == two ? 0 : -1);
    TRY_OK((long)shmat(-1, NULL, 0));
    TRY_OK((long)shmat(0x7ffffff, NULL, 0));
    TRY(shmdt(one + 4096));
    TRY(shmdt(one + 1));
    TRY(shmdt(NULL));
    /* A hole with something else in it. */
    munmap(one, 4096);
    mmap(one, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    TRY(shmdt(one));
    printf("the other mapping is %s\n", *one == 0 ? "there" : "changed");
    TRY(shmdt(one));
    struct shmid_ds status;
    shmctl(id, IPC_STAT, &status);
    status.shm_perm.mode = 0777;
    TRY(shmctl(id, IPC_SET, &status));
    TRY(shmctl(id, SHM_LOCK, NULL));
    show_segment(id);
    TRY(shmctl(id, SHM_UNLOCK, NULL));
    TRY(shmctl(id, IPC_RMID, NULL));
    show_segment(id);
    listed("shm", id, 1);
    TRY(shmget(key(1), 100, 0));
    printf("still %s\n", two);
    TRY(shmctl(id, IPC_RMID, NULL));
    IN_CHILD("attaches what is marked") {
        char *again = shmat(id, NULL, 0);
        printf("%s\n", again == (void *)-1 ? strerrorname_np(errno) : again);
    }
    TRY(shmdt(two));
    show_segment(id);
    TRY(shmctl(id, 99, NULL));
    TRY(shmctl(-1, IPC_STAT, &status));
    /* The end of a process detaches. */
    TRY(gone(shmget(IPC_PRIVATE, 1 << 20, 0600), &id));
    IN_CHILD("attached at its end") {
        char *mine = shmat(id, NULL, 0);
        memset(mine, 7, 1 << 20);
        TRY(shmctl(id, IPC_RMID, NULL));
        show_segment(id);
    }
    show_segment(id);
    TRY(gone(shmget(IPC_PRIVATE, 10, 0), &id));
    IN_CHILD("another user") {
        setgroups(0, NULL);
        setgid(1000);
        setuid(1000);
        TRY_OK((long)shmat(id, NULL, SHM_RDONLY));
        TRY(shmctl(id, IPC_STAT, &status));
        TRY(shmctl(id, IPC_RMID, NULL));
        TRY(shmctl(id, SHM_LOCK, NULL));
    }
    TRY(shmctl(id, IPC_RMID, NULL));
}

static int set;
static long op(int number, int change, int flags) {
    struct sembuf one = {number, change, flags};
    return semop(set, &one, 1);
}
static void show_set(const char *what) {
    unsigned short values[3];
    semctl(set, 0, GETALL, values);
    printf("%s: %d %d %d, waiting %d %d, last %s\n", what, values[0], values[1], values[2], semctl(set, 0, GETNCNT),
           semctl(set, 0, GETZCNT), whose(semctl(set, 0, GETPID)));
}
static void handler(int signal) { (void)signal; }

/* Sleeps until a call waits for the first semaphore. */
static void until_waiting(int command) {
    for (int n = 0; n < 2000 && semctl(set, 0, command) < 1; n++)
        nap(1);
}

static void semaphores(void) {
    TRY(semget(key(2), 0, IPC_CREAT | 0600));
    TRY(semget(key(2), 40000, IPC_CREAT | 0600));
    TRY(semget(key(2), -1, IPC_CREAT | 0600));
    TRY(semget(key(2), 3, 0));
    TRY(gone(semget(key(2), 3, IPC_CREAT | 0600), &set));
    TRY(semget(key(2), 4, 0));
    listed("sem", set, 1);
    show_set("new");
    struct semid_ds status;
    TRY(semctl(set, 0, IPC_STAT, (union semun){.buf = &status}));
    printf("%ld semaphores, mode %o, times %s, %s\n", (long)status.sem_nsems, status.sem_perm.mode, recent(status.sem_otime),
           recent(status.sem_ctime));
    TRY(semctl(set, 0, SETVAL, (union semun){.val = 3}));
    TRY(semctl(set, 0, SETVAL, (union semun){.val = 40000}));
    TRY(semctl(set, 0, SETVAL, (union semun){.val = -1}));
    TRY(semctl(set, 5, SETVAL, (union semun){.val = 1}));
    TRY(semctl(set, 3, GETVAL));
    unsigned short values[] = {1, 2, 3};
    TRY(semctl(set, 0, SETALL, (union semun){.array = values}));
    TRY(op(0, -1, 0));
    TRY(op(0, -1, IPC_NOWAIT));
    TRY(op(1, 0, IPC_NOWAIT));
    TRY(op(0, 0, 0));
    TRY(op(3, 1, 0));
    TRY(op(0, 32767, 0));
    TRY(op(0, 1, 0));
    TRY(semop(set, NULL, 0));
    TRY(semop(set, NULL, 501));
    TRY(semop(set, NULL, 1));
    struct sembuf both[] = {{1, -1, 0}, {2, -4, IPC_NOWAIT}}, again[] = {{1, -1, 0}, {1, -1, 0}, {1, 0, 0}, {1, 2, 0}};
    TRY(semop(set, both, 2));
    TRY(semop(set, again, 4));
    show_set("after");
    TRY(semctl(set, 0, SETALL, (union semun){.array = (unsigned short[]){0, 2, 3}}));
    pid_t pid = fork();
    if (pid == 0) {
        _exit(op(0, -2, 0) ? errno : 0);
    }
    until_waiting(GETNCNT);
    show_set("one waits");
    TRY(op(0, 1, 0));
    nap(20);
    TRY(op(0, 2, 0));
    reap("taker", pid);
    show_set("taken");
    pid = fork();
    if (pid == 0) {
        _exit(op(0, 0, 0) ? errno : 0);
    }
    until_waiting(GETZCNT);
    show_set("waits for zero");
    TRY(op(0, -1, 0));
    reap("zero", pid);
    struct sembuf take = {0, -1, 0};
    struct timespec soon = {0, 60000000}, bad = {0, -1};
    long start = now_ms();
    TRY(semtimedop(set, &take, 1, &soon));
    printf("timeout %s\n", took(start, 60));
    TRY(semtimedop(set, &take, 1, &bad));
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval alarm = {{0, 0}, {0, 60000}};
    setitimer(ITIMER_REAL, &alarm, NULL);
    TRY(semop(set, &take, 1));
    semctl(set, 0, SETVAL, (union semun){.val = 5});
    IN_CHILD("undo") {
        TRY(op(0, -3, SEM_UNDO));
        TRY(op(1, 2, SEM_UNDO));
        TRY(op(2, 1, SEM_UNDO));
        semctl(set, 2, SETVAL, (union semun){.val = 9});
        show_set("before the end");
        IN_CHILD("grandchild") { TRY(op(0, -1, 0)); }
    }
    show_set("undone");
    IN_CHILD("undo below zero") {
        TRY(op(1, 4, SEM_UNDO));
        TRY(op(1, -5, 0));
        TRY(op(1, -32767, SEM_UNDO | IPC_NOWAIT));
    }
    show_set("undone to zero");
    pid = fork();
    if (pid == 0) {
        _exit(op(1, -20, 0) ? errno : 0);
    }
    nap(60);
    TRY(semctl(set, 0, IPC_RMID));
    reap("removed while it waits", pid);
    TRY(op(0, 1, 0));
    TRY(semctl(set, 0, GETVAL));
    /* A cheap mutex over many processes. */
    set = semget(IPC_PRIVATE, 3, 0600);
    semctl(set, 0, SETVAL, (union semun){.val = 1});
    volatile long *counter = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int n = 0; n < 4; n++) {
        if (fork() == 0) {
            for (int m = 0; m < 200; m++) {
                op(0, -1, SEM_UNDO);
                long value = *counter;
                if (m % 16 == 0)
                    sched_yield();
                *counter = value + 1;
                op(0, 1, SEM_UNDO);
            }
            _exit(0);
        }
    }
    while (wait(NULL) > 0)
        ;
    printf("counted %ld, value %d\n", *counter, semctl(set, 0, GETVAL));
    semctl(set, 0, IPC_RMID);
}

struct message {
    long type;
    char text[8200];
};

static int queue;
static long put(long type, const char *text, int flags) {
    struct message message = {.type = type};
    strcpy(message.text, text);
    return msgsnd(queue, &message, strlen(text), flags);
}
static void take(long type, int room, int flags) {
    struct message message = {0};
    ssize_t length = msgrcv(queue, &message, room, type, flags);
    if (length < 0)
        printf("take %ld %#x: %s\n", type, flags, strerrorname_np(errno));
    else
        printf("take %ld %#x: %ld \"%.*s\"\n", type, flags, message.type, (int)length, message.text);
}
static void show_queue(void) {
    struct msqid_ds status;
    if (msgctl(queue, IPC_STAT, &status)) {
        printf("status: %s\n", strerrorname_np(errno));
        return;
    }
    printf("%ld messages, %lu bytes of %lu, mode %o, times %s, %s, %s by %s, %s\n", (long)status.msg_qnum,
           (long)status.__msg_cbytes, (long)status.msg_qbytes, status.msg_perm.mode, recent(status.msg_stime),
           recent(status.msg_rtime), recent(status.msg_ctime), whose(status.msg_lspid), whose(status.msg_lrpid));
}

static void messages(void) {
    TRY(msgget(key(3), 0));
    TRY(gone(msgget(key(3), IPC_CREAT | 0600), &queue));
    TRY(msgget(key(3), IPC_CREAT | IPC_EXCL | 0600));
    show_queue();
    TRY(put(0, "x", 0));
    TRY(put(-1, "x", 0));
    TRY(put(3, "three", 0));
    TRY(put(1, "one", 0));
    TRY(put(2, "", 0));
    TRY(put(1, "another one", 0));
    listed("msg", queue, 2);
    show_queue();
    static struct message large = {.type = 1};
    TRY(msgsnd(queue, &large, 8193, 0));
    TRY(msgsnd(queue, &large, -1, 0));
    TRY(msgsnd(queue, NULL, 1, 0));
    TRY(msgsnd(-1, &large, 1, 0));
    TRY(msgrcv(queue, &large, -1, 0, 0));
    take(7, 100, IPC_NOWAIT);
    take(1, 2, 0);
    take(1, 2, MSG_NOERROR);
    take(-2, 100, 0);
    take(3, 100, MSG_EXCEPT);
    take(0, 100, 0);
    take(0, 100, IPC_NOWAIT);
    take(5, 100, MSG_EXCEPT | IPC_NOWAIT);
    show_queue();
    TRY(msgsnd(queue, &large, 8192, IPC_NOWAIT));
    TRY(msgsnd(queue, &large, 8192, IPC_NOWAIT));
    TRY(msgsnd(queue, &large, 1, IPC_NOWAIT));
    TRY(msgsnd(queue, &large, 0, IPC_NOWAIT));
    pid_t pid = fork();
    if (pid == 0) {
        _exit(msgsnd(queue, &large, 100, 0) ? 1 : 0);
    }
    nap(60);
    take(0, 1, MSG_NOERROR);
    reap("sender", pid);
    show_queue();
    while (msgrcv(queue, &large, 8192, 0, IPC_NOWAIT) >= 0)
        ;
    pid = fork();
    if (pid == 0) {
        struct message message = {0};
        ssize_t length = msgrcv(queue, &message, 100, 9, 0);
        _exit(length == 4 && message.type == 9 && !memcmp(message.text, "this", 4) ? 0 : 1);
    }
    nap(30);
    TRY(put(8, "not this", 0));
    TRY(put(9, "this", 0));
    reap("receiver", pid);
    take(0, 100, IPC_NOWAIT);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval alarm = {{0, 0}, {0, 60000}};
    setitimer(ITIMER_REAL, &alarm, NULL);
    take(0, 100, 0);
    struct msqid_ds status;
    msgctl(queue, IPC_STAT, &status);
    status.msg_qbytes = 10;
    status.msg_perm.mode = 0600;
    TRY(msgctl(queue, IPC_SET, &status));
    show_queue();
    TRY(put(1, "0123456789", IPC_NOWAIT));
    TRY(put(1, "x", IPC_NOWAIT));
    IN_CHILD("another user") {
        setgroups(0, NULL);
        setgid(1000);
        setuid(1000);
        TRY(put(1, "x", IPC_NOWAIT));
        take(0, 1, IPC_NOWAIT);
        TRY(msgctl(queue, IPC_STAT, &status));
        TRY(msgctl(queue, IPC_RMID, NULL));
        TRY(msgctl(queue, IPC_SET, &status));
        TRY(msgget(key(3), 0600));
    }
    take(0, 100, 0);
    pid = fork();
    if (pid == 0) {
        _exit(msgrcv(queue, &large, 100, 0, 0) < 0 ? errno : 0);
    }
    nap(60);
    TRY(msgctl(queue, IPC_RMID, NULL));
    reap("removed while it waits", pid);
    show_queue();
}

static void namespaces(void) {
    int id;
    TRY(gone(shmget(key(4), 100, IPC_CREAT | 0600), &id));
    IN_CHILD("namespace") {
        if (unshare(0x08000000 /* CLONE_NEWIPC */)) {
            /* A container may not be allowed to. */
            _exit(0);
        }
        if (shmget(key(4), 100, 0) != -1 || errno != ENOENT)
            printf("the other namespace's segment is visible\n");
    }
    TRY(shmctl(id, IPC_RMID, NULL));
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    segments();
    semaphores();
    messages();
    namespaces();
    return 0;
}
