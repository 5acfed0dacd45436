#include "core/wait_notice.h"

#include <utility>

namespace cadre {

WaitNotice::WaitNotice(std::chrono::milliseconds patience, std::function<void()> say)
    : thread_([this, patience, say = std::move(say)](const std::stop_token& over) {
        std::unique_lock lock(mutex_);
        woken_.wait_for(lock, over, patience, [] { return false; });
        if (!over.stop_requested()) say();
      }) {}

}  // namespace cadre
