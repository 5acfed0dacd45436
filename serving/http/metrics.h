// The server's Prometheus metrics: what requests did, and the engine's own numbers at the scrape.
// Any thread. No label holds a client's text.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "serving/request.h"

namespace cadre {

class ServingMetrics {
 public:
  ServingMetrics();
  ~ServingMetrics();

  void HttpResponse(std::string_view route, int status);
  // An admitted request whose answer was broken off by the front, and why.
  enum class Abort { kClientGone, kTimeout, kSlowClient };
  void Aborted(Abort reason);
  // A client that no TLS connection came about with.
  void HandshakeFailed();
  struct Request {
    int prompt_tokens = 0;  // of all prompts
    int n = 1;
    int max_tokens = 0;
  };
  void Admitted(const Request& request);
  void FirstToken(double seconds);
  void NextToken(double seconds_since_last);
  // The end of one sequence.
  struct Finished {
    std::string_view reason;   // stop, length; what else there is, is a failure
    std::string_view failure;  // its kind, see FailureKind
    int generation_tokens = 0;
    double e2e_seconds = 0;
    double queue_seconds = 0;
    double prefill_seconds = 0;
    double decode_seconds = 0;
  };
  void Done(const Finished& finished);

  // What the server says of itself at the scrape.
  struct Server {
    bool draining = false;
    int connections = 0;
    int in_flight = 0;        // completion requests being read or answered
    int64_t tls_expires = 0;  // seconds since 1970; 0: no TLS
  };
  // The text of /metrics.
  std::string Scrape(const EngineStats& stats, const EngineHealth& health, const ModelInfo& info,
                     const Server& server);

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace cadre
