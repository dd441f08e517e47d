// The fibers and the registry behind device.h.
#include "device.h"
#include <map>
#include <string>
#include <ucontext.h>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum class State { Ready, AtWarp, AtBlock, Done };

struct Fiber {
    ucontext_t context;
    State state;
    float given;
    unsigned words[6];         // a and b of a product
    const unsigned short* row; // of a matrix in shared memory
};

struct Kernel {
    unsigned arguments;
    void (*call)(void**);
};

const unsigned LANES = 32;
const size_t STACK = 64 << 10;

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

std::vector<Fiber> fibers;
std::vector<char> stacks;
ucontext_t scheduler;
// What a thread found wrong.
const char* fault;
void (*running)(void**);
void** running_arguments;

extern "C" char __start_shared_memory[] __attribute__((visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((visibility("hidden")));

void begin() {
    running(running_arguments);
    fibers[threadIdx.x].state = State::Done;
    swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

void wait(State state) {
    unsigned me = threadIdx.x;
    fibers[me].state = state;
    swapcontext(&fibers[me].context, &scheduler);
}

// Runs the ready threads of a warp until each waits or is done; says whether one moved.
bool run_warp(unsigned first, bool backwards) {
    bool moved = false;
    for (unsigned i = 0; i < LANES; i++) {
        unsigned thread = first + (backwards ? LANES - 1 - i : i);
        if (fibers[thread].state != State::Ready) continue;
        threadIdx.x = thread;
        swapcontext(&scheduler, &fibers[thread].context);
        moved = true;
    }
    return moved;
}

unsigned count(State state, unsigned first, unsigned threads) {
    unsigned n = 0;
    for (unsigned i = first; i < first + threads; i++) n += fibers[i].state == state;
    return n;
}

void release(unsigned first, unsigned threads) {
    for (unsigned i = first; i < first + threads; i++) fibers[i].state = State::Ready;
}

// Null, or what is wrong.
const char* run_block(unsigned threads, bool backwards) {
    for (unsigned i = 0; i < threads; i++) {
        getcontext(&fibers[i].context);
        fibers[i].context.uc_stack.ss_sp = stacks.data() + i * STACK;
        fibers[i].context.uc_stack.ss_size = STACK;
        makecontext(&fibers[i].context, begin, 0);
        fibers[i].state = State::Ready;
    }
    while (count(State::Done, 0, threads) < threads) {
        bool moved = false;
        for (unsigned w = 0; w < threads / LANES; w++) {
            unsigned first = LANES * (backwards ? threads / LANES - 1 - w : w);
            moved |= run_warp(first, backwards);
            unsigned waiting = count(State::AtWarp, first, LANES);
            if (waiting && waiting < LANES) return "not all lanes of a warp came to a shuffle";
            if (waiting) release(first, LANES);
            moved |= waiting > 0;
        }
        if (count(State::AtBlock, 0, threads) == threads)
            release(0, threads);
        else if (!moved)
            return "not all threads of a block came to a barrier";
    }
    return nullptr;
}

} // namespace

Registered::Registered(const char* name, unsigned arguments, void (*call)(void**)) {
    kernels()[name] = {arguments, call};
}

void __syncthreads() { wait(State::AtBlock); }

float __shfl_xor_sync(unsigned, float value, int apart) {
    unsigned me = threadIdx.x;
    fibers[me].given = value;
    wait(State::AtWarp);
    float got = fibers[me ^ (unsigned)apart].given;
    wait(State::AtWarp); // Nobody gives again before all have taken.
    return got;
}

// c += a·b of a warp; a row of a and a column of b are 16 values, two a word.
void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    unsigned me = threadIdx.x, first = me / LANES * LANES, g = me % LANES / 4, t = me % 4;
    for (int i = 0; i < 6; i++) fibers[me].words[i] = i < 4 ? a[i] : b[i - 4];
    wait(State::AtWarp);
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
        double sum = 0.0;
        for (unsigned k = 0; k < 16; k++) {
            unsigned place = k % 8 / 2, shift = k % 2 * 16;
            unsigned left = fibers[first + row % 8 * 4 + place].words[row / 8 + 2 * (k / 8)] >> shift;
            unsigned right = fibers[first + column * 4 + place].words[4 + k / 8] >> shift;
            sum += (double)__uint_as_float(left << 16) * __uint_as_float(right << 16);
        }
        c[i] += (float)sum;
    }
    wait(State::AtWarp);
}

void load_b(unsigned (&b)[2], const unsigned short* row) {
    unsigned me = threadIdx.x, first = me / LANES * LANES, g = me % LANES / 4, t = me % 4;
    if ((size_t)row % 16) fault = "a row of a matrix does not begin at 16 bytes";
    fibers[me].row = row;
    wait(State::AtWarp);
    for (unsigned i = 0; i < 2; i++) {
        unsigned lane = first + 8 * i + 2 * t;
        b[i] = fibers[lane].row[g] | (unsigned)fibers[lane + 1].row[g] << 16;
    }
    wait(State::AtWarp);
}

// Runs a kernel; null, or what is wrong.
extern "C" const char* launch(const char* name, unsigned x, unsigned y, unsigned threads, unsigned count,
                              void** arguments, int backwards) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return "no such kernel";
    if (found->second.arguments != count) return "another number of arguments";
    if (threads == 0 || threads % LANES || threads > 1024) return "a block is made of 1 to 32 whole warps";
    running = found->second.call;
    running_arguments = arguments;
    fault = nullptr;
    fibers.resize(threads);
    stacks.resize(threads * STACK);
    blockDim = {threads, 1, 1};
    gridDim = {x, y, 1};
    for (unsigned i = 0; i < x * y; i++) {
        blockIdx = {i % x, i / x, 0};
        memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
        if (const char* wrong = run_block(threads, backwards)) return wrong;
    }
    return fault;
}
