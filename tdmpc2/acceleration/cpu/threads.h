// Whose memory the kernels work in. Each thread has its own, which grows when a call needs more; a caller that must not
// allocate brings its own, and has that of the helping threads made before.
#pragma once

#include "kernels.h"

namespace tdmpc2 {

struct Scratch {
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch();

    // False if there is no such memory, and nothing has changed. What was in a slot is lost when it grows.
    bool reserve(Slot slot, size_t bytes);

    void* data[num_slots] = {};
    size_t size[num_slots] = {};
};

// Makes the threads that help a caller of so many threads, or as many as the system allows, and memory of so many bytes
// for each thread that helps, also for those made later. False if there is no such memory.
bool reserve(int threads, const size_t* bytes);

// The calling thread works in this memory for as long as the object lives.
class Lend {
  public:
    explicit Lend(Scratch* scratch);
    Lend(const Lend&) = delete;
    Lend& operator=(const Lend&) = delete;
    ~Lend();

  private:
    Scratch* const before;
};

}  // namespace tdmpc2
