#include "parallel/collective.h"

#include <algorithm>

namespace cadre {

std::unique_ptr<std::byte[]> StagingPool::Take(size_t bytes) {
  for (auto& [size, data] : free_) {
    if (size != bytes) continue;
    std::unique_ptr<std::byte[]> found = std::move(data);
    std::swap(free_.back().first, size);
    std::swap(free_.back().second, data);
    free_.pop_back();
    return found;
  }
  return std::make_unique_for_overwrite<std::byte[]>(bytes);
}

void StagingPool::Give(size_t bytes, std::unique_ptr<std::byte[]> data) {
  if (free_.size() == kMaxKept) free_.erase(free_.begin());
  free_.emplace_back(bytes, std::move(data));
}

void TransferBatch::Send(int peer, uint32_t piece, std::span<const std::byte> data) {
  const Messages::Peer& to = messages_.peers[peer];
  Item& item = items_.emplace_back(Item{.peer = to.rank, .one_ring = false});
  to.transport->Send(to.rank, MakeTag(messages_.communicator, messages_.operation, piece), data,
                     &item.transfer);
  if (item.transfer.done) items_.pop_back();
}

void TransferBatch::Receive(int peer, uint32_t piece, std::span<std::byte> buffer) {
  const Messages::Peer& from = messages_.peers[peer];
  Item& item = items_.emplace_back(
      Item{.peer = from.rank, .one_ring = buffer.size() <= from.transport->one_ring_bytes()});
  from.transport->Receive(from.rank, MakeTag(messages_.communicator, messages_.operation, piece),
                          buffer, &item.transfer);
  if (item.transfer.done) items_.pop_back();
}

void TransferBatch::Local(const std::function<void(Transfer*)>& start) {
  const int me = messages_.peers[static_cast<size_t>(messages_.rank)].rank;
  start(&items_.emplace_back(Item{.peer = me, .one_ring = true}).transfer);
}

bool TransferBatch::done() {
  while (!items_.empty() && items_.back().transfer.done) items_.pop_back();
  return items_.empty();
}

uint32_t TransferBatch::rings_needed() const {
  uint32_t needed = 0;
  for (const Item& item : items_) {
    if (item.transfer.done) continue;
    if (!item.one_ring) return 1;
    ++needed;
  }
  return std::max(1u, needed);
}

int TransferBatch::waits_for() const {
  for (const Item& item : items_) {
    if (!item.transfer.done) return item.peer;
  }
  return -1;
}

}  // namespace cadre
