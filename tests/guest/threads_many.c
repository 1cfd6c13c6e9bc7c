/* Two hundred threads at once: a shared counter, a barrier, condition variables, thread-local data, joins. */
#include "check.h"

enum { COUNT = 200, ROUNDS = 200 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static long counter, turn;
static __thread long mine;
static pid_t tids[COUNT];

static void *work(void *argument) {
    long number = (long)argument;
    tids[number] = gettid();
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        counter++;
        pthread_mutex_unlock(&lock);
        mine += number;
    }
    /* One after the other, in order. */
    pthread_mutex_lock(&lock);
    while (turn != number)
        pthread_cond_wait(&turn_changed, &lock);
    turn++;
    pthread_cond_broadcast(&turn_changed);
    pthread_mutex_unlock(&lock);
    return (void *)mine;
}

int main(void) {
    pthread_t threads[COUNT];
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    pthread_barrier_init(&barrier, NULL, COUNT);
    for (long i = 0; i < COUNT; i++)
        if (pthread_create(&threads[i], &attributes, work, (void *)i))
            printf("thread %ld was not made\n", i);
    long sum = 0;
    for (int i = 0; i < COUNT; i++) {
        void *result;
        pthread_join(threads[i], &result);
        sum += (long)result;
    }
    int same = 0;
    for (int i = 0; i < COUNT; i++)
        for (int j = i + 1; j < COUNT; j++)
            same += tids[i] == tids[j];
    printf("counter %ld, turn %ld, sum %ld, equal ids %d\n", counter, turn, sum, same);
    for (int round = 0; round < 500; round++) {
        pthread_t thread;
        pthread_barrier_init(&barrier, NULL, 1);
        turn = 0;
        pthread_create(&thread, &attributes, work, NULL);
        pthread_join(thread, NULL);
    }
    printf("counter %ld\n", counter);
    return 0;
}
