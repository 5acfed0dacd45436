// A mixture layer's routed part: router -> dispatcher -> experts -> combine.
//
// Immutable; callable from any thread with a Context of its own.
#pragma once

#include <memory>

#include "moe/dispatcher.h"
#include "moe/experts.h"
#include "moe/router.h"

namespace cadre::moe {

class MoeLayer {
 public:
  MoeLayer(Router router, Experts experts, std::shared_ptr<const Dispatcher> dispatcher)
      : router_(std::move(router)),
        experts_(std::move(experts)),
        dispatcher_(std::move(dispatcher)) {}

  struct Output {
    PendingVar y;  // [T, D]
    Routing routing;
  };
  struct InFlight {
    Routing routing;
    Dispatched dispatched;
  };
  // x [T, D]: this rank's tokens; offsets [S + 1] are the sequences, as far as they lie in them.
  // What is computed between the two runs beside the tokens' way to their experts.
  InFlight Start(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                 const RouterOptions& options, int layer) const;
  Output Finish(Context& ctx, InFlight flight, int layer) const;

  Output Forward(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                 const RouterOptions& options, int layer) const {
    return Finish(ctx, Start(ctx, x, offsets, options, layer), layer);
  }

  const Router& router() const { return router_; }

 private:
  Router router_;
  Experts experts_;
  std::shared_ptr<const Dispatcher> dispatcher_;
};

}  // namespace cadre::moe
