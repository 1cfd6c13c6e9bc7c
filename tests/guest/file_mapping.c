/* Mappings of files: sharing, private copies, the end of the file, truncation, permissions. */
#include "probe.h"

int main(void) {
    int fd = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
    static const char zeroes_to_write[2 * PAGE];
    TRY(pwrite(fd, zeroes_to_write, sizeof zeroes_to_write, 0));
    TRY(ftruncate(fd, 2 * PAGE + 10));
    TRY(pwrite(fd, "hello", 5, 0));
    char *shared = mmap(NULL, 4 * PAGE, RW, MAP_SHARED, fd, 0);
    char *private = mmap(NULL, 4 * PAGE, RW, MAP_PRIVATE, fd, 0);
    printf("%c, behind the end: %d\n", shared[0], shared[2 * PAGE + 100]);
    LOAD(shared + 3 * PAGE);
    STORE(shared + 3 * PAGE);
    STORE(private + 3 * PAGE);
    shared[1] = 'E';
    char text[6] = "";
    pread(fd, text, 5, 0);
    printf("through the mapping: %s\n", text);
    pwrite(fd, "J", 1, 0);
    printf("through the file: %c\n", shared[0]);
    private[0] = 'P';
    shared[2] = 'X';
    shared[PAGE] = 4;
    printf("private: %c %c, file: %c, another page: %d\n", private[0], private[2], shared[0], private[PAGE]);
    IN_CHILD("child") {
        private[1] = 'C';
        shared[3] = 'S';
        printf("child: %c%c%c\n", private[0], private[1], shared[3]);
    }
    printf("parent: %c%c%c\n", private[0], private[1], shared[3]);
    TRY(ftruncate(fd, PAGE));
    LOAD(shared + PAGE);
    LOAD(private + PAGE);
    LOAD(private);
    TRY(write(fd, shared + PAGE, 1));
    TRY(ftruncate(fd, 4 * PAGE));
    printf("grown: %d %d\n", shared[PAGE], private[3 * PAGE]);
    TRY(msync(shared, 4 * PAGE, MS_SYNC));

    int reading = open("mapped", O_RDONLY), writing = open("mapped", O_WRONLY), path = open("mapped", O_PATH);
    int directory = open(".", O_RDONLY), pipes[2];
    TRY_OK(mmap(NULL, PAGE, RW, MAP_SHARED, reading, 0));
    char *seen = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, reading, 0);
    TRY(mprotect(seen, PAGE, RW));
    TRY_OK(mmap(NULL, PAGE, RW, MAP_PRIVATE, reading, 0));
    TRY_OK(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, writing, 0));
    TRY_OK(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, writing, 0));
    TRY_OK(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, path, 0));
    TRY_OK(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, directory, 0));
    TRY(pipe(pipes));
    TRY_OK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, pipes[0], 0));
    TRY_OK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, reading, 5));
    TRY_OK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, reading, 0x7ffffffffffff000));
    TRY_OK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED | MAP_HUGETLB, reading, 0));

    int zero = open("/dev/zero", O_RDWR), null = open("/dev/null", O_RDWR);
    char *zeroes = mmap(NULL, PAGE, RW, MAP_PRIVATE, zero, 0), *ours = mmap(NULL, PAGE, RW, MAP_SHARED, zero, 0);
    STORE(zeroes);
    STORE(ours);
    TRY_OK(mmap(NULL, PAGE, RW, MAP_PRIVATE, null, 0));

    unlink("mapped");
    close(fd);
    close(reading);
    close(writing);
    printf("unlinked and closed: %c%c\n", shared[0], shared[1]);
    return 0;
}
