// Counts what a program asks the system for. These functions take the place of the C library's in the whole process;
// operator new ends here as well.
#pragma once

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

#include <atomic>
#include <cstdlib>

static std::atomic<long> allocations{0}, threads_asked_for{0};
static std::atomic<bool> no_more_threads{false};

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t size) { return allocations++, __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return allocations++, __libc_calloc(count, size); }
void* realloc(void* block, size_t size) { return allocations++, __libc_realloc(block, size); }
void* aligned_alloc(size_t alignment, size_t size) { return allocations++, __libc_memalign(alignment, size); }
void* memalign(size_t alignment, size_t size) { return allocations++, __libc_memalign(alignment, size); }
int posix_memalign(void** to, size_t alignment, size_t size) {
    return allocations++, (*to = __libc_memalign(alignment, size)) ? 0 : ENOMEM;
}
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*work)(void*), void* argument) {
    using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
    static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
    threads_asked_for++;
    return no_more_threads ? EAGAIN : create(thread, attributes, work, argument);
}
}
