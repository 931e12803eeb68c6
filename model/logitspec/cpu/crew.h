// Threads that share the work of a job, piece by piece. A job is a sequence of phases; a phase is
// over once all its pieces are done, whoever did them. So nobody waits for a thread that another
// process keeps from running, unless that thread holds a piece: not at the end of a phase, and not at
// the end of a job, which is why these are not OpenMP's threads.

#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace {

using Counter = std::atomic<int>;
using Clock = std::chrono::steady_clock;
constexpr int APART = 64 / sizeof(Counter);  // so that two counters share no cache line
// How long a thread spins before it blocks: longer than most pieces take, and than most trees take
// to be drafted.
constexpr auto IN_PHASE = std::chrono::microseconds(100), BETWEEN_JOBS = std::chrono::microseconds(500);

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Wait while a counter is `seen`: spin a little, then block, so that a thread that waits for this core
// can have it. Who changes the counter has to notify.
inline void await_change(Counter& counter, int seen, Clock::duration spin) {
    for (auto end = Clock::now() + spin; Clock::now() < end;)
        for (int i = 0; i < 16; i++) {
            if (counter.load(std::memory_order_acquire) != seen) return;
            relax();
        }
    counter.wait(seen, std::memory_order_acquire);
}

// One thread of a job.
struct Worker {
    int me, threads;  // 0 is the thread that gave the job
    Counter* phase;   // of the next phase: pieces that are done, then those taken of each part

    // Do a phase: work(piece) for each piece that no other thread takes. What lives as long as the job
    // may be used in work() only: a thread can come to a phase when the job is over.
    template <class Work> void share(int64_t pieces, Work work) {
        Counter& done = phase[0];
        int mine = 0;
        // First this thread's part, pieces side by side; then what is left of the others'.
        for (int k = 0; k < threads; k++) {
            int64_t whose = (me + k) % threads;
            int64_t begin = pieces * whose / threads, end = pieces * (whose + 1) / threads;
            Counter& taken = phase[(whose + 1) * APART];
            for (int64_t i; (i = begin + taken.fetch_add(1, std::memory_order_relaxed)) < end;) {
                work(i);
                mine++;
            }
        }
        if (mine && done.fetch_add(mine, std::memory_order_acq_rel) + mine == pieces)
            done.notify_all();
        for (int seen; (seen = done.load(std::memory_order_acquire)) < pieces;)
            await_change(done, seen, IN_PHASE);
        phase += (threads + 1) * APART;
    }
};

struct Job {
    int threads;
    std::function<void(Worker)> work;
    std::vector<Counter> counters;
    Job(int threads, int64_t phases, std::function<void(Worker)> work)
        : threads(threads), work(std::move(work)), counters(phases * (threads + 1) * APART) {}
    void join(int me) { work(Worker{me, threads, counters.data()}); }
};

// The threads of a process.
class Crew {
   public:
    // Runs work(worker), of so many phases at most, on so many threads, this one among them; on this
    // one alone while the crew has the job of another thread.
    static void run(int threads, int64_t phases, std::function<void(Worker)> work) {
        auto job = std::make_shared<Job>(threads, phases, std::move(work));
        Crew* crew = threads > 1 ? &of_this_process() : nullptr;
        std::unique_lock<std::mutex> mine;
        if (crew) mine = std::unique_lock(crew->in_use_, std::try_to_lock);
        if (mine) crew->give(job);
        job->join(0);
    }

   private:
    std::mutex in_use_, giving_;
    std::shared_ptr<Job> job_;
    Counter jobs_{0};
    int hired_ = 0;
    // A fork has none of its parent's threads, and no lock that one of them holds is ever released
    // there: it starts with no crew.
    static inline std::atomic<Crew*> current_{nullptr};
    static inline const int forgotten_ = pthread_atfork(nullptr, nullptr, [] { current_ = nullptr; });

    static Crew& of_this_process() {  // never destroyed, as its threads run on
        Crew* crew = current_;
        if (!crew) {
            Crew* made = new Crew;
            if (current_.compare_exchange_strong(crew, made)) return *made;
            delete made;
        }
        return *crew;
    }

    void give(const std::shared_ptr<Job>& job) {
        {
            std::lock_guard lock(giving_);
            job_ = job;
        }
        try {
            for (; hired_ < job->threads - 1; hired_++)
                std::thread(&Crew::serve, this, hired_ + 1, jobs_.load()).detach();
        } catch (const std::system_error&) {  // no more threads here: those there are do the work
        }
        jobs_.fetch_add(1, std::memory_order_acq_rel);
        jobs_.notify_all();
    }

    void serve(int me, int seen) {
        while (true) {
            await_change(jobs_, seen, BETWEEN_JOBS);
            seen = jobs_.load(std::memory_order_acquire);
            std::shared_ptr<Job> job;
            {
                std::lock_guard lock(giving_);
                job = job_;
            }
            if (me < job->threads) job->join(me);
        }
    }
};

}  // namespace
