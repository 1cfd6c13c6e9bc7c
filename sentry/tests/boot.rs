//! Boots a kernel on this machine's `/dev/kvm` and runs static C programs in it. Skipped, loudly, without KVM.

mod support;

use support::run;

#[test]
fn prints_and_exits() {
    let source = r#"
        #include <stdio.h>
        #include <unistd.h>
        int main(int argc, char **argv) { printf("%s %d %d\n", argv[1], argc, getpid()); return 7; }
    "#;
    let Some(result) = run("prints", source, &["hello"]) else { return };
    assert_eq!(result, ("hello 2 1\n".into(), 7));
}

#[test]
fn forks_waits_and_threads() {
    let source = r#"
        #include <pthread.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <sys/wait.h>
        #include <unistd.h>
        static int sum; static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
        static void *work(void *arg) {
            for (int i = 0; i < 1000; i++) { pthread_mutex_lock(&lock); sum++; pthread_mutex_unlock(&lock); }
            return arg;
        }
        int main(void) {
            int codes = 0;
            for (int i = 0; i < 5; i++) if (fork() == 0) _exit(i);
            for (int i = 0, s; i < 5; i++) { wait(&s); codes += WEXITSTATUS(s); }
            pthread_t t[8];
            for (int i = 0; i < 8; i++) pthread_create(&t[i], 0, work, 0);
            for (int i = 0; i < 8; i++) pthread_join(t[i], 0);
            char *big = malloc(32 << 20); for (int i = 0; i < 32 << 20; i += 4096) big[i] = 1;
            if (fork() == 0) { big[0] = 2; _exit(big[4096]); }
            int s; wait(&s);
            printf("%d %d %d %d\n", codes, sum, big[0], WEXITSTATUS(s));
            return 0;
        }
    "#;
    let Some(result) = run("forks", source, &[]) else { return };
    assert_eq!(result, ("10 8000 1 1\n".into(), 0));
}

#[test]
fn handles_signals() {
    let source = r#"
        #include <setjmp.h>
        #include <signal.h>
        #include <stdio.h>
        #include <sys/wait.h>
        #include <unistd.h>
        static sigjmp_buf out; static volatile int seen;
        static void on_segv(int s, siginfo_t *i, void *c) { seen += i->si_addr == (void *)0x123; siglongjmp(out, 1); }
        static void on_usr(int s) { seen += 10; }
        int main(void) {
            struct sigaction a = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };
            sigaction(SIGSEGV, &a, 0);
            if (!sigsetjmp(out, 1)) *(volatile int *)0x123 = 1;
            signal(SIGUSR1, on_usr); kill(getpid(), SIGUSR1); raise(SIGUSR1);
            printf("%d\n", seen); fflush(stdout);
            raise(SIGTERM); /* init of its namespace is immune */
            int status; if (fork() == 0) raise(SIGABRT);
            wait(&status); return WTERMSIG(status);
        }
    "#;
    let Some(result) = run("signals", source, &[]) else { return };
    assert_eq!(result, ("21\n".into(), 6));
}
