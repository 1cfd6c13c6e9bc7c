/* How threads and their process end: exit_group under blocked threads, the leader first, exec from a thread,
 * cancellation, a signal for one thread, a fatal signal. */
#include "check.h"

static int pipes[2];

static void *block(void *unused) {
    char byte;
    read(pipes[0], &byte, 1);
    return unused;
}

static void *finish(void *unused) {
    (void)unused;
    nap(50);
    puts("the last thread speaks");
    exit(33);
}

static void *execute(void *self) {
    char *args[] = {"self", "after", NULL}, *none[] = {NULL};
    execve(self, args, none);
    return NULL;
}

static volatile pid_t handled_by;
static void handler(int signal) { (void)signal; handled_by = gettid(); }

static volatile pid_t spinner;
static void *spin(void *unused) {
    spinner = gettid();
    for (;;)
        nap(5);
    return unused;
}

static void *segv(void *unused) {
    *(volatile char *)unused = 1;
    return unused;
}

static void cleaned(void *text) { puts(text); }

static void *cancellable(void *unused) {
    pthread_cleanup_push(cleaned, "cleaned up");
    block(NULL);
    pthread_cleanup_pop(0);
    return unused;
}

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1) {
        int threads = 0;
        char line[256];
        FILE *status = fopen("/proc/self/status", "r");
        while (fgets(line, sizeof line, status))
            sscanf(line, "Threads: %d", &threads);
        printf("after exec: %s, %d thread\n", getpid() == gettid() ? "leader" : "not leader", threads);
        return 44;
    }
    char self[PATH_MAX];
    self[readlink("/proc/self/exe", self, sizeof self - 1)] = 0;
    pipe(pipes);
    pthread_t thread;
    IN_CHILD("exit under blocked threads") {
        for (int i = 0; i < 20; i++)
            pthread_create(&thread, NULL, block, NULL);
        exit(32);
    }
    IN_CHILD("leader first") {
        pthread_create(&thread, NULL, finish, NULL);
        pthread_exit(NULL);
    }
    IN_CHILD("exec from a thread") {
        for (int i = 0; i < 10; i++)
            pthread_create(&thread, NULL, block, NULL);
        pthread_create(&thread, NULL, execute, self);
        pthread_join(thread, NULL);
    }
    IN_CHILD("fatal signal in a thread") {
        for (int i = 0; i < 10; i++)
            pthread_create(&thread, NULL, block, NULL);
        pthread_create(&thread, NULL, segv, NULL);
        pthread_join(thread, NULL);
    }
    IN_CHILD("killed from outside") {
        for (int i = 0; i < 10; i++)
            pthread_create(&thread, NULL, block, NULL);
        kill(getpid(), SIGKILL);
        pause();
    }
    pthread_create(&thread, NULL, cancellable, NULL);
    nap(50);
    pthread_cancel(thread);
    void *result;
    pthread_join(thread, &result);
    printf("cancelled: %d\n", result == PTHREAD_CANCELED);
    signal(SIGUSR1, handler);
    pthread_create(&thread, NULL, spin, NULL);
    while (!spinner)
        nap(1);
    pthread_kill(thread, SIGUSR1);
    while (!handled_by)
        nap(1);
    printf("thread's signal: %s\n", handled_by == spinner ? "that thread" : "another");
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    handled_by = 0;
    kill(getpid(), SIGUSR1);
    while (!handled_by)
        nap(1);
    printf("process's signal: %s\n", handled_by == spinner ? "the thread that takes it" : "another");
    return 0;
}
