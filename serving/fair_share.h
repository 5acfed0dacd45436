// FairShare: who has been served how much, after the Virtual Token Counter of Sheng et al.,
// "Fairness in Serving Large Language Models", OSDI 2024. A tenant's counter grows with what is
// computed for it; the waiting tenant with the smallest one comes next. One that comes back from
// idling is lifted to the least served of those that wait, so it gets no credit for its idle time,
// and two tenants that always have work are never further apart than a bound that the largest
// request sets.
//
// Engine thread only.
#pragma once

#include <string>
#include <unordered_map>

namespace cadre {

class FairShare {
 public:
  // A request of the tenant begins to wait; it stops waiting (admitted or given up).
  void Queued(const std::string& tenant);
  void Left(const std::string& tenant);
  void Charge(const std::string& tenant, double cost) { tenants_[tenant].served += cost; }
  double served(const std::string& tenant) const;

 private:
  struct Tenant {
    double served = 0;
    int waiting = 0;
  };
  std::unordered_map<std::string, Tenant> tenants_;  // as many as there are API keys
  std::string last_left_;  // whose request was the last to leave the queue
};

}  // namespace cadre
