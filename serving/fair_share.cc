#include "serving/fair_share.h"

#include <algorithm>
#include <limits>

namespace cadre {

double FairShare::served(const std::string& tenant) const {
  const auto found = tenants_.find(tenant);
  return found == tenants_.end() ? 0 : found->second.served;
}

void FairShare::Queued(const std::string& tenant) {
  Tenant& own = tenants_[tenant];
  if (own.waiting++ > 0) return;
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [name, other] : tenants_) {
    if (other.waiting > 0 && &other != &own) least = std::min(least, other.served);
  }
  // Where nobody else waits, the last one served says how far the others have come.
  if (least == std::numeric_limits<double>::infinity()) least = served(last_left_);
  own.served = std::max(own.served, least);
}

void FairShare::Left(const std::string& tenant) {
  --tenants_[tenant].waiting;
  last_left_ = tenant;
}

}  // namespace cadre
