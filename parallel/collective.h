// What collective algorithms are written with: coroutines that post batches of messages and await
// them. The progress engine resumes a coroutine when the batch that it awaits has arrived.
//
//   Collective Exchange(Messages& messages, ...) {
//     TransferBatch batch(messages);
//     batch.Send(peer, piece, mine);
//     batch.Receive(peer, piece, theirs);
//     co_await batch;
//     ...
//   }
//
// A coroutine runs under the engine's lock, on whichever thread steps the engine.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/status.h"
#include "parallel/transport.h"

namespace cadre {

// Blocks of memory that messages land in before they are summed, kept for the next operation: fresh
// pages cost more than the copy.
class StagingPool {
 public:
  class Block {
   public:
    Block(StagingPool& pool, size_t bytes) : pool_(pool), bytes_(bytes), data_(pool.Take(bytes)) {}
    ~Block() { pool_.Give(bytes_, std::move(data_)); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    std::byte* data() const { return data_.get(); }

   private:
    StagingPool& pool_;
    size_t bytes_;
    std::unique_ptr<std::byte[]> data_;
  };

 private:
  static constexpr size_t kMaxKept = 16;

  std::unique_ptr<std::byte[]> Take(size_t bytes);
  void Give(size_t bytes, std::unique_ptr<std::byte[]> data);

  std::vector<std::pair<size_t, std::unique_ptr<std::byte[]>>> free_;
};

// The messages of one operation: whom they reach and how they are told apart.
struct Messages {
  struct Peer {
    int rank = -1;                   // in the world
    Transport* transport = nullptr;  // null for this rank itself
  };
  const std::vector<Peer>& peers;  // by rank in the group
  int rank;                        // this rank in the group
  uint32_t communicator;
  uint32_t operation;
  StagingPool& staging;

  int size() const { return static_cast<int>(peers.size()); }
};

class TransferBatch {
 public:
  explicit TransferBatch(const Messages& messages) : messages_(messages) {}
  TransferBatch(const TransferBatch&) = delete;
  TransferBatch& operator=(const TransferBatch&) = delete;

  // `peer` is another rank of the group. Bytes must stay until the batch is done.
  void Send(int peer, uint32_t piece, std::span<const std::byte> data);
  void Receive(int peer, uint32_t piece, std::span<std::byte> buffer);
  // What ends on this rank, with one ring of the doorbell: `start` gets the Transfer that the
  // transport behind it marks.
  void Local(const std::function<void(Transfer*)>& start);

  bool done();
  // How many rings of the doorbell it needs at least before it can be done.
  uint32_t rings_needed() const;
  // A rank of the world that it still waits for, maybe this one; -1: none.
  int waits_for() const;

 private:
  struct Item {
    Transfer transfer;
    int peer;
    bool one_ring;  // a message that arrives as one ring
  };
  const Messages& messages_;
  std::deque<Item> items_;  // transports hold pointers into it
};

class Collective {
 public:
  struct promise_type {
    TransferBatch* awaited = nullptr;

    Collective get_return_object() {
      return Collective(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }

    struct Awaiter {
      promise_type& promise;
      TransferBatch& batch;
      bool await_ready() { return batch.done(); }
      void await_suspend(std::coroutine_handle<>) { promise.awaited = &batch; }
      void await_resume() { promise.awaited = nullptr; }
    };
    Awaiter await_transform(TransferBatch& batch) { return {*this, batch}; }
  };

  Collective(Collective&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Collective& operator=(Collective&&) = delete;
  ~Collective() {
    if (handle_) handle_.destroy();
  }

  // Runs on until it has to wait; whether it moved.
  bool Resume() {
    if (done()) return false;
    TransferBatch* awaited = handle_.promise().awaited;
    if (awaited != nullptr && !awaited->done()) return false;
    handle_.resume();
    return true;
  }
  bool done() const { return !handle_ || handle_.done(); }
  // What it waits for; null before its first step and after its last.
  const TransferBatch* awaited() const { return done() ? nullptr : handle_.promise().awaited; }
  // Ends it where it stands; no transport may know its messages any more.
  void Drop() {
    if (handle_) std::exchange(handle_, nullptr).destroy();
  }

 private:
  explicit Collective(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  std::coroutine_handle<promise_type> handle_;
};

}  // namespace cadre
