/* execve: arguments, environment, what survives it, scripts, and every way to be refused. */
#include "check.h"
#include <sys/prctl.h>

static int report(int argc, char **argv, char **envp) {
    printf("argc %d", argc);
    for (int i = 1; i < argc && i < 6; i++)
        printf(" [%s]", argv[i]);
    int variables = 0;
    while (envp[variables])
        variables++;
    printf(" env %d [%s]\n", variables, envp[0] ? envp[0] : "");
    struct sigaction usr1, usr2;
    sigaction(SIGUSR1, NULL, &usr1);
    sigaction(SIGUSR2, NULL, &usr2);
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    char name[16];
    prctl(PR_GET_NAME, name);
    printf("USR1 %s, USR2 %s, HUP %s, fd 100 %s, fd 101 %s, name %s\n", usr1.sa_handler == SIG_DFL ? "default" : "kept",
           usr2.sa_handler == SIG_IGN ? "ignored" : "reset", sigismember(&mask, SIGHUP) ? "blocked" : "open",
           fcntl(100, F_GETFD) < 0 ? "closed" : "open", fcntl(101, F_GETFD) < 0 ? "closed" : "open", name);
    return 17;
}

static void handler(int signal) { (void)signal; }

static void script(const char *path, const char *text, int mode) {
    write_file(path, text);
    chmod(path, mode);
    IN_CHILD(path) {
        char *args[] = {(char *)path, "given", NULL}, *none[] = {NULL};
        TRY(execve(path, args, none));
        _exit(99);
    }
}

int main(int argc, char **argv, char **envp) {
    if (argc > 1 && strcmp(argv[1], "count") == 0) {
        size_t bytes = 0;
        for (int i = 0; i < argc; i++)
            bytes += strlen(argv[i]) + 1;
        printf("count: %d arguments, %s\n", argc, bytes > 500000 ? "many bytes" : "few bytes");
        return 0;
    }
    if (argc > 1)
        return report(argc, argv, envp);
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length] = 0;
    IN_CHILD("what survives") {
        signal(SIGUSR1, handler);
        signal(SIGUSR2, SIG_IGN);
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGHUP);
        sigprocmask(SIG_BLOCK, &mask, NULL);
        int null = open("/dev/null", O_RDONLY);
        dup2(null, 100);
        dup3(null, 101, O_CLOEXEC);
        prctl(PR_SET_NAME, "renamed");
        char *args[] = {"self", "report", "", "a b", "\xff\xfe", NULL}, *env[] = {"A=1", "B=2", NULL};
        execve(self, args, env);
    }
    IN_CHILD("execveat") {
        int fd = open(self, O_PATH);
        char *args[] = {"self", "report", NULL}, *env[] = {NULL};
        syscall(SYS_execveat, fd, "", args, env, AT_EMPTY_PATH);
        printf("execveat: %s\n", strerrorname_np(errno));
    }
    IN_CHILD("fexecve by O_CLOEXEC") {
        int fd = open(self, O_RDONLY | O_CLOEXEC);
        char *args[] = {"self", "report", NULL}, *env[] = {NULL};
        fexecve(fd, args, env);
    }
    char *args[] = {"x", NULL}, *none[] = {NULL};
    TRY(execve("missing", args, none));
    TRY(execve(".", args, none));
    TRY(execve("", args, none));
    TRY(execve("/dev/null", args, none));
    TRY(execve((char *)8, args, none));
    TRY(execve(self, (char **)8, none));
    mkdir("dir", 0755);
    TRY(execve("dir", args, none));
    TRY(execve("dir/missing", args, none));
    TRY(execve("/proc/self/exe/under", args, none));
    script("plain", "echo no interpreter line\n", 0755);
    script("empty", "", 0755);
    script("forbidden", "#!/bin/sh\n", 0644);
    script("lost", "#!/no/such/interpreter\n", 0755);
    script("blank", "#!   \n", 0755);
    script("text_elf", "\177ELF but not really", 0755);
    char line[PATH_MAX + 64];
    snprintf(line, sizeof line, "#!%s report and more \n", self);
    script("works", line, 0755);
    script("loop1", "#!./loop2\n", 0755);
    script("loop2", "#!./loop1\n", 0755);
    script("chain1", "#!./works deep\n", 0755);
    int busy = open("works", O_WRONLY);
    IN_CHILD("text busy") {
        char *again[] = {"works", NULL};
        TRY(execve("./works", again, none));
    }
    close(busy);
    int count = 40000;
    char **many = calloc(count + 3, sizeof *many);
    many[0] = "self";
    many[1] = "count";
    for (int i = 2; i < count; i++)
        many[i] = "0123456789abcdef";
    IN_CHILD("40,000 arguments") { execve(self, many, none); }
    char *huge = malloc(140000);
    memset(huge, 'x', 139999);
    huge[139999] = 0;
    char *one[] = {"self", "count", huge, NULL};
    TRY(execve(self, one, none));
    return 0;
}
