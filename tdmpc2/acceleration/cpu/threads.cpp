// Threads that share the items of a loop. They are made once per process, look for the next loop for a moment when one
// has ended, and then sleep, so that another process gets the core. Whoever calls works too, and waits only for items
// that another thread has begun: threads that the system does not let run cost nothing. All that is not so for loops
// on another library's threads.
#include <pthread.h>
#include <signal.h>

#include <algorithm>
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
    bytes = (bytes + line - 1) / line * line;
    void* const more = std::aligned_alloc(line, bytes);
    if (!more) return false;
    std::free(data[slot]);
    data[slot] = more, size[slot] = bytes;
    return true;
}

namespace {

// To this thread. A library that is opened at run time gets its threads' variables when a thread first uses them, from
// malloc; this model has them made with the thread, so that a control loop may act in a thread of its own. It takes from
// a small supply, so that it is only for the library that promises not to allocate.
#if defined(TDMPC2_ACTS_ONLY) && defined(__GLIBC__)
__attribute__((tls_model("initial-exec")))
#endif
thread_local Scratch* lent = nullptr;

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
    // A process that a fork has made inherits the sizes, but none of the threads.
    explicit Pool(const Pool* parent) {
        if (parent) std::copy_n(parent->largest, num_slots, largest);
    }

    std::mutex busy;  // by a caller

    // Called by the one that is busy with it: no loop is running, so the helpers touch no memory. Every thread gets what
    // the largest caller needs, whoever it was made for: all may take part in any loop.
    bool reserve(int helpers, const size_t* bytes) {
        size_t before[num_slots];
        std::copy_n(largest, num_slots, before);
        for (int slot = 0; slot < num_slots; slot++) largest[slot] = std::max(largest[slot], bytes[slot]);
        bool enough = true;
        for (Scratch& scratch : memory) enough = fit(scratch) && enough;
        if (enough) {
            tried = size;  // whatever was in the way of more threads before may be gone
            grow(helpers);
        } else {
            std::copy_n(before, num_slots, largest);  // others may be opened yet
        }
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
    bool fit(Scratch& scratch) {
        bool enough = true;
        for (int slot = 0; slot < num_slots; slot++)
            enough = scratch.reserve(Slot(slot), largest[slot]) && enough;
        return enough;
    }

    // A number of threads that could not be had is not tried again by every loop.
    void grow(int helpers) {
        if (tried >= helpers) return;
        tried = helpers;
        sigset_t all, before;  // signals are for the threads that were there
        sigfillset(&all);
        if (pthread_sigmask(SIG_SETMASK, &all, &before)) return;
        try {
            for (; size < helpers; size++) {
                if (int(memory.size()) == size) memory.emplace_back();
                Scratch* const own = &memory[size];
                if (!fit(*own)) break;
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
    std::deque<Scratch> memory;      // of each helper
    size_t largest[num_slots] = {};  // bytes that were reserved
    int size = 0, tried = 0;        // helpers that there are, and that were asked for
};

// Never deleted: its threads live as long as the process, which is why the library stays loaded (-z nodelete). A child
// process has none of them and makes its own.
std::atomic<Pool*> the_pool{nullptr}, parents_pool{nullptr};

Pool* pool() {
    Pool* found = the_pool;
    if (found) return found;
    static const int watched = pthread_atfork(nullptr, nullptr, [] {
        if (Pool* const parents = the_pool.exchange(nullptr)) parents_pool = parents;
    });
    (void)watched;
    Pool* made = nullptr;
    try {
        made = new Pool(parents_pool);
    } catch (const std::bad_alloc&) {  // then the caller computes alone
        return nullptr;
    }
    if (the_pool.compare_exchange_strong(found, made)) return made;
    delete made;
    return found;
}

}  // namespace

void for_each_item(int threads, int items, void (*work)(void*, int), void* context, Parallel parallel) {
    Loop loop{work, context, items, (threads < items ? threads : items) - 1};
    if (parallel && loop.helpers > 0)  // all of them, even if items are fewer: GNU's would end those that are too many
        return parallel([](void* shared) { static_cast<Loop*>(shared)->run(); }, &loop, unsigned(threads), 0);
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
