// Threads that share the items of a loop. They are made once per process, look for the next loop for a moment when one
// has ended, and then sleep, so that another process gets the core. Whoever calls works too, and waits only for items
// that another thread has begun: threads that the system does not let run cost nothing.
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>
#include <thread>

#include "threads.h"

namespace tdmpc2 {

Scratch::~Scratch() {
    for (void* block : data) std::free(block);
}

bool Scratch::reserve(Slot slot, size_t bytes) {
    if (size[slot] >= bytes) return true;
    constexpr size_t line = 64;
    if (bytes > SIZE_MAX - line) return false;
    std::free(data[slot]);
    size[slot] = (bytes + line - 1) / line * line;
    data[slot] = std::aligned_alloc(line, size[slot]);
    if (!data[slot]) size[slot] = 0;
    return data[slot];
}

namespace {

thread_local Scratch* lent = nullptr;  // to this thread

// How long a thread looks for work before it sleeps; waking it takes about as long.
constexpr auto patience = std::chrono::microseconds(60);

struct Loop {
    void (*work)(void*, int);
    void* context;
    int items, helpers;
    std::atomic<int> next{0}, joined{0};

    void run() {
        for (int item; (item = next.fetch_add(1)) < items;) work(context, item);
    }
};

inline void rest() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// True as soon as `done` is, false if it is not for a while.
template <class Done>
bool soon(Done done) {
    const auto end = std::chrono::steady_clock::now() + patience;
    do {
        for (int i = 0; i < 32; i++, rest())
            if (done()) return true;
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

struct Pool {
    std::mutex busy;  // by a caller

    // Called by the one that is busy with it: no loop is running, so the helpers touch no memory.
    bool reserve(int helpers, const size_t* bytes) {
        grow(helpers);
        bool enough = true;
        for (Scratch& scratch : memory)
            for (int slot = 0; slot < num_slots; slot++) enough = scratch.reserve(Slot(slot), bytes[slot]) && enough;
        return enough;
    }

    // Called by the one that is busy with it.
    void run(Loop& own) {
        grow(own.helpers);
        loop = &own;
        posted++;
        if (sleeping > 0) {
            std::lock_guard<std::mutex> lock(mutex);
            work_there.notify_all();
        }
        own.run();
        loop = nullptr;  // whoever comes from now on finds nothing
        const auto done = [&] { return active == 0; };
        if (soon(done)) return;
        std::unique_lock<std::mutex> lock(mutex);
        waiting = true;
        all_left.wait(lock, done);
        waiting = false;
    }

  private:
    void grow(int helpers) {
        sigset_t all, before;  // signals are for the threads that were there
        sigfillset(&all);
        if (size >= helpers || pthread_sigmask(SIG_SETMASK, &all, &before)) return;
        try {
            for (; size < helpers; size++) {
                if (int(memory.size()) == size) memory.emplace_back();
                Scratch* const own = &memory[size];
                std::thread([this, own, seen = posted.load()] {
                    lent = own;
                    help(seen);
                }).detach();
            }
        } catch (...) {  // no more threads or memory: fewer will do
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    [[noreturn]] void help(unsigned seen) {
        for (;;) {
            const auto is_posted = [&] { return posted != seen; };
            if (!soon(is_posted)) {
                std::unique_lock<std::mutex> lock(mutex);
                sleeping++;
                work_there.wait(lock, is_posted);
                sleeping--;
            }
            seen = posted;
            active++;
            if (Loop* const found = loop)
                if (found->joined.fetch_add(1) < found->helpers) found->run();
            if (--active == 0 && waiting) {
                std::lock_guard<std::mutex> lock(mutex);
                all_left.notify_one();
            }
        }
    }

    std::atomic<Loop*> loop{nullptr};
    std::atomic<unsigned> posted{0};
    std::atomic<int> active{0}, sleeping{0};
    std::atomic<bool> waiting{false};
    std::mutex mutex;
    std::condition_variable work_there, all_left;
    std::deque<Scratch> memory;  // of each helper
    int size = 0;
};

// Never deleted: its threads live as long as the process. A child process has none of them and makes its own.
std::atomic<Pool*> the_pool{nullptr};

Pool* pool() {
    Pool* found = the_pool;
    if (found) return found;
    static const int watched = pthread_atfork(nullptr, nullptr, [] { the_pool = nullptr; });
    (void)watched;
    auto* const made = new (std::nothrow) Pool;
    if (the_pool.compare_exchange_strong(found, made)) return made;
    delete made;
    return found;
}

}  // namespace

void for_each_item(int threads, int items, void (*work)(void*, int), void* context) {
    Loop loop{work, context, items, (threads < items ? threads : items) - 1};
    Pool* const helpers = loop.helpers > 0 ? pool() : nullptr;
    if (!helpers || !helpers->busy.try_lock()) return loop.run();  // by another caller: two loops would only be slower
    helpers->run(loop);
    helpers->busy.unlock();
}

bool reserve(int threads, const size_t* bytes) {
    Pool* const helpers = threads > 1 ? pool() : nullptr;
    if (!helpers) return true;
    std::lock_guard<std::mutex> lock(helpers->busy);
    return helpers->reserve(threads - 1, bytes);
}

Lend::Lend(Scratch* scratch) : before(lent) { lent = scratch; }
Lend::~Lend() { lent = before; }

void* scratch(Slot slot, size_t bytes) {
    if (!lent) {
        static thread_local Scratch own;
        lent = &own;
    }
    if (!lent->reserve(slot, bytes)) std::abort();
    return lent->data[slot];
}

}  // namespace tdmpc2
