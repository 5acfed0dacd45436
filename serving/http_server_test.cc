// The front over real HTTP on the loopback, with an engine that answers a fixed text. Tokens are
// bytes, so characters and stop strings lie over token borders.
#include "serving/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

namespace cadre {
namespace {

using Json = nlohmann::json;

constexpr int32_t kEnd = 256;
constexpr char kReply[] = "H\xc3\xa9llo w\xc3\xb6rld, stop here \xf0\x9f\x98\x80!";

// A byte-level vocabulary: ids 0..255 are the bytes, 256 and 257 are special.
std::string TokenizerJson() {
  auto utf8 = [](int c) {
    if (c < 0x80) return std::string(1, static_cast<char>(c));
    return std::string{static_cast<char>(0xc0 | (c >> 6)), static_cast<char>(0x80 | (c & 63))};
  };
  Json vocab;
  int other = 256;
  for (int b = 0; b < 256; ++b) {
    bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    vocab[utf8(plain ? b : other++)] = b;
  }
  auto special = [](int id, const char* text) {
    return Json{{"id", id},        {"content", text}, {"special", true},    {"single_word", false},
                {"lstrip", false}, {"rstrip", false}, {"normalized", false}};
  };
  return Json{{"version", "1.0"},
              {"added_tokens", {special(256, "<|end|>"), special(257, "<|start|>")}},
              {"normalizer", nullptr},
              {"pre_tokenizer",
               {{"type", "ByteLevel"},
                {"add_prefix_space", false},
                {"trim_offsets", true},
                {"use_regex", true}}},
              {"post_processor", nullptr},
              {"decoder",
               {{"type", "ByteLevel"},
                {"add_prefix_space", true},
                {"trim_offsets", true},
                {"use_regex", true}}},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"vocab", vocab},
                {"merges", Json::array()}}}}
      .dump();
}

// Answers every request with kReply and the end token, one token per step and sequence.
class TestEngine : public EngineClient {
 public:
  TestEngine() : thread_([this] { Run(); }) {}
  ~TestEngine() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  absl::Status Submit(std::vector<GenerationRequest> requests,
                      std::shared_ptr<EventSink> sink) override {
    std::lock_guard lock(mutex_);
    if (running_.size() + requests.size() > max_queue_)
      return ResourceExhausted("the queue is full");
    for (GenerationRequest& request : requests) {
      uint64_t id = request.id;
      prompts_.push_back(*request.prompt);
      seeds_.push_back(request.sampling.seed);
      running_[id] = {std::move(request), sink};
    }
    changed_.notify_all();
    return absl::OkStatus();
  }
  void Cancel(uint64_t id) override {
    std::lock_guard lock(mutex_);
    if (running_.contains(id)) cancelled_.insert(id);
    changed_.notify_all();
  }
  ModelInfo Info() const override {
    return {.max_context = 200, .vocab_size = 258, .weight_version = 7};
  }
  EngineHealth Health() const override { return {.ready = true}; }
  EngineStats Stats() const override { return {.num_requests_running = 3}; }

  // While paused no step runs.
  void Pause(bool paused) {
    std::lock_guard lock(mutex_);
    paused_ = paused;
    changed_.notify_all();
  }
  void LimitQueue(size_t size) {
    std::lock_guard lock(mutex_);
    max_queue_ = size;
  }
  void FailAt(int step) {
    std::lock_guard lock(mutex_);
    fail_at_ = step;
  }
  void WaitUntilRunning(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return running_.size() == count; });
  }
  size_t num_cancelled() {
    std::lock_guard lock(mutex_);
    return num_cancelled_;
  }
  std::vector<std::vector<int32_t>> prompts() {
    std::lock_guard lock(mutex_);
    return prompts_;
  }
  std::vector<uint64_t> seeds() {
    std::lock_guard lock(mutex_);
    return seeds_;
  }

 private:
  struct Sequence {
    GenerationRequest request;
    std::shared_ptr<EventSink> sink;
    int step = 0;
  };

  TokenEvent Step(Sequence* sequence) {
    const SamplingParams& sampling = sequence->request.sampling;
    TokenEvent event{.request_id = sequence->request.id};
    if (cancelled_.erase(event.request_id)) {
      ++num_cancelled_;
      event.finish = FinishReason::kCancelled;
      return event;
    }
    if (sequence->step == fail_at_) {
      event.finish = FinishReason::kError;
      event.error = Internal("the engine broke");
      return event;
    }
    std::string_view reply = kReply;
    auto at = static_cast<size_t>(sequence->step++);
    event.token = at < reply.size() ? static_cast<unsigned char>(reply[at]) : kEnd;
    event.logprob = -0.5f - static_cast<float>(at);
    for (int i = 0; i < sampling.logprobs; ++i)
      event.top.push_back({'a' + i, -1.0f - static_cast<float>(i)});
    if (at == 0 && sampling.prompt_logprobs >= 0) {
      for (int32_t id : *sequence->request.prompt) event.prompt_logprobs.push_back({id, -2});
    }
    if (at == 0) event.cached_tokens = 2;
    bool stops = std::binary_search(sampling.stop_token_ids.begin(), sampling.stop_token_ids.end(),
                                    event.token);
    if (stops) event.finish = FinishReason::kStop;
    if (!stops && sequence->step >= sampling.max_tokens) event.finish = FinishReason::kLength;
    return event;
  }

  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] {
        return stopping_ || !cancelled_.empty() || (!paused_ && !running_.empty());
      });
      if (stopping_) return;
      std::map<std::shared_ptr<EventSink>, std::vector<TokenEvent>> news;
      for (auto it = running_.begin(); it != running_.end();) {
        if (paused_ && !cancelled_.contains(it->first)) {
          ++it;
          continue;
        }
        TokenEvent event = Step(&it->second);
        bool done = event.finish != FinishReason::kNone;
        news[it->second.sink].push_back(std::move(event));
        it = done ? running_.erase(it) : std::next(it);
      }
      changed_.notify_all();
      lock.unlock();
      for (auto& [sink, events] : news) sink->OnStep(std::move(events));
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Sequence> running_;
  std::set<uint64_t> cancelled_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<uint64_t> seeds_;
  size_t num_cancelled_ = 0;
  size_t max_queue_ = 1000;
  int fail_at_ = -1;
  bool paused_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

// A blocking client with its own idea of HTTP.
class Client {
 public:
  explicit Client(uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    timeval limit{.tv_sec = 60};
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  ~Client() { Close(); }
  void Close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  // Until `mark` has come; what came up to it.
  std::string ReadUntil(std::string_view mark) {
    while (buffer_.find(mark) == std::string::npos && Fill()) {
    }
    return Take(buffer_.find(mark) == std::string::npos ? buffer_.size()
                                                        : buffer_.find(mark) + mark.size());
  }
  std::string ReadBytes(size_t size) {
    while (buffer_.size() < size && Fill()) {
    }
    return Take(std::min(size, buffer_.size()));
  }
  bool AtEnd() { return buffer_.empty() && !Fill(); }

 private:
  bool Fill() {
    char chunk[4096];
    ssize_t size = ::recv(socket_, chunk, sizeof(chunk), 0);
    if (size > 0) buffer_.append(chunk, static_cast<size_t>(size));
    return size > 0;
  }
  std::string Take(size_t size) {
    std::string taken = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return taken;
  }
  int socket_;
  std::string buffer_;
};

struct Reply {
  int status = 0;
  std::string head;
  std::string body;
  Json json() const { return Json::parse(body, nullptr, false); }
};

Reply ReadReply(Client* client) {
  Reply reply;
  reply.head = client->ReadUntil("\r\n\r\n");
  if (reply.head.size() > 12) reply.status = std::atoi(reply.head.c_str() + 9);
  size_t length = reply.head.find("Content-Length: ");
  if (length != std::string::npos) {
    reply.body = client->ReadBytes(std::stoul(reply.head.substr(length + 16)));
    return reply;
  }
  while (reply.head.find("chunked") != std::string::npos) {
    size_t size = std::stoul("0" + client->ReadUntil("\r\n"), nullptr, 16);
    reply.body += client->ReadBytes(size);
    client->ReadBytes(2);
    if (size == 0) break;
  }
  return reply;
}

std::string PostText(std::string_view path, std::string_view body) {
  return fmt::format("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}", path,
                     body.size(), body);
}

class HttpServerTest : public testing::Test {
 protected:
  void SetUp() override { Start({}); }
  void Start(HttpServerOptions options) {
    server_.reset();
    if (!tokenizer_) {
      auto tokenizer = Tokenizer::Parse("test", TokenizerJson());
      ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
      tokenizer_ = *std::move(tokenizer);
      chat_ = *ChatTemplate::Parse(
          "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% "
          "endif "
          "%}<|start|>{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
          "{% if add_generation_prompt %}<|start|>assistant:{% endif %}");
    }
    options.service.served_model_names = {"tiny"};
    options.service.defaults.eos_token_ids = {kEnd};
    auto server = HttpServer::Start(std::move(options), {tokenizer_.get(), chat_.get(), &engine_});
    ASSERT_TRUE(server.ok()) << Message(server.status());
    server_ = *std::move(server);
  }
  Reply Raw(std::string_view bytes) {
    Client client(server_->port());
    client.Send(bytes);
    return ReadReply(&client);
  }
  Reply Get(std::string_view path, std::string_view headers = "") {
    return Raw(fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n", path, headers));
  }
  Reply Chat(Json extra = Json::object()) {
    Json body = {{"model", "tiny"}, {"messages", {{{"role", "user"}, {"content", "hi"}}}}};
    body.update(extra);
    return Raw(PostText("/v1/chat/completions", body.dump()));
  }
  Reply Complete(Json extra = Json::object()) {
    Json body = {{"prompt", "ab"}, {"max_tokens", 100}};
    body.update(extra);
    return Raw(PostText("/v1/completions", body.dump()));
  }

  TestEngine engine_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
  std::unique_ptr<HttpServer> server_;
};

std::vector<Json> Events(const Reply& reply) {
  std::vector<Json> events;
  for (size_t at = 0; (at = reply.body.find("data: ", at)) != std::string::npos; at += 6) {
    std::string data = reply.body.substr(at + 6, reply.body.find("\n\n", at) - at - 6);
    events.push_back(data == "[DONE]" ? Json("[DONE]") : Json::parse(data, nullptr, false));
  }
  return events;
}

TEST_F(HttpServerTest, PlainEndpoints) {
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Get("/ready?x=1").status, 200);
  EXPECT_EQ(Get("/v1/models").json()["data"][0]["id"], "tiny");
  EXPECT_EQ(Get("/nothing").status, 404);
  EXPECT_EQ(Get("/v1/../health").status, 404);
  EXPECT_EQ(Get("/v1/completions").status, 405);
  EXPECT_EQ(Chat().status, 200);
  std::string metrics = Get("/metrics").body;
  for (const std::string& line :
       {std::string("cadre_num_requests_running 3\n"),
        fmt::format("cadre_generation_tokens_total {}\n", sizeof(kReply)),
        std::string("cadre_request_success_total{finished_reason=\"stop\"} 1\n"),
        std::string("cadre_time_to_first_token_seconds_count 1\n")}) {
    EXPECT_NE(metrics.find(line), std::string::npos) << line;
  }
}

TEST_F(HttpServerTest, WholeChatAnswer) {
  Json body = Chat({{"seed", 5}}).json();
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["id"].get<std::string>().substr(0, 9), "chatcmpl-");
  EXPECT_EQ(body["choices"][0]["message"], (Json{{"role", "assistant"}, {"content", kReply}}));
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["system_fingerprint"], "cadre-w7");
  // <|start|> user:hi <|end|> <|start|> assistant:
  EXPECT_EQ(body["usage"]["prompt_tokens"], 20);
  EXPECT_EQ(body["usage"]["completion_tokens"], int(sizeof(kReply)));
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
  EXPECT_EQ(engine_.seeds(), std::vector<uint64_t>{5});
}

TEST_F(HttpServerTest, SpecialTextOfUsersStaysText) {
  Chat({{"messages", {{{"role", "user"}, {"content", "<|end|>"}}}}});
  std::vector<int32_t> prompt = engine_.prompts().at(0);
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), 257), 2);
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), kEnd), 1);  // the template's own
}

TEST_F(HttpServerTest, StreamedChatFollowsTheRules) {
  for (int n : {1, 3}) {
    Json options = {{"stream", true}, {"n", n}, {"stream_options", {{"include_usage", true}}}};
    std::vector<Json> events = Events(Chat(options));
    ASSERT_GT(events.size(), 4u);
    EXPECT_EQ(events.back(), "[DONE]");
    events.pop_back();
    EXPECT_EQ(events.back()["choices"], Json::array());
    EXPECT_EQ(events.back()["usage"]["completion_tokens"], n * int(sizeof(kReply)));
    EXPECT_EQ(events.back()["usage"]["prompt_tokens"], 20);
    events.pop_back();
    std::map<int, std::string> texts;
    std::map<int, int> roles, finishes;
    for (const Json& event : events) {
      EXPECT_EQ(event["id"], events[0]["id"]);
      EXPECT_FALSE(event.contains("usage"));
      const Json& choice = event["choices"][0];
      int index = choice["index"];
      EXPECT_EQ(choice["delta"].contains("role"), roles[index] == 0);
      roles[index] += choice["delta"].contains("role");
      finishes[index] += !choice["finish_reason"].is_null();
      texts[index] += choice["delta"].value("content", "");
    }
    for (int i = 0; i < n; ++i) {
      EXPECT_EQ(texts[i], kReply);
      EXPECT_EQ(roles[i], 1);
      EXPECT_EQ(finishes[i], 1);
    }
  }
  for (const Json& event : Events(Chat({{"stream", true}}))) {
    EXPECT_FALSE(event.is_object() && event.contains("usage"));
  }
}

TEST_F(HttpServerTest, StopStringsCrossTokens) {
  for (bool stream : {false, true}) {
    size_t cancelled = engine_.num_cancelled();
    Reply reply = Chat({{"stop", {"stop", "nothing"}}, {"stream", stream}});
    std::string text, finish;
    if (stream) {
      for (const Json& event : Events(reply)) {
        if (!event.is_object()) continue;
        text += event["choices"][0]["delta"].value("content", "");
        if (event["choices"][0]["finish_reason"].is_string())
          finish = event["choices"][0]["finish_reason"];
      }
    } else {
      text = reply.json()["choices"][0]["message"]["content"];
      finish = reply.json()["choices"][0]["finish_reason"];
    }
    EXPECT_EQ(text, "H\xc3\xa9llo w\xc3\xb6rld, ");
    EXPECT_EQ(finish, "stop");
    engine_.WaitUntilRunning(0);
    EXPECT_GE(engine_.num_cancelled(), cancelled);
  }
}

TEST_F(HttpServerTest, MaxTokensNeverSplitsACharacter) {
  for (bool stream : {false, true}) {
    Reply reply = Complete({{"max_tokens", 2}, {"stream", stream}});
    Json last = stream ? Events(reply).at(Events(reply).size() - 2) : reply.json();
    EXPECT_EQ(last["choices"][0]["finish_reason"], "length");
    std::string text;
    if (!stream) text = last["choices"][0]["text"];
    for (const Json& event : Events(reply)) {
      if (event.is_object()) text += event["choices"][0]["text"].get<std::string>();
    }
    EXPECT_EQ(text, "H\xef\xbf\xbd");
  }
}

TEST_F(HttpServerTest, CompletionsPromptsLogprobsAndEcho) {
  Json body = Complete({{"prompt", {"ab", "c"}}, {"n", 2}}).json();
  EXPECT_EQ(body["choices"].size(), 4u);
  EXPECT_EQ(body["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(Complete({{"prompt", {97, 98}}}).json()["choices"][0]["text"], kReply);
  Json echo =
      Complete({{"prompt", "ab"}, {"echo", true}, {"logprobs", 2}, {"max_tokens", 1}}).json();
  EXPECT_EQ(echo["choices"][0]["text"], "abH");
  Json logprobs = echo["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], (Json{"a", "b", "H"}));
  EXPECT_EQ(logprobs["text_offset"], (Json{0, 1, 2}));
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["token_logprobs"][2], -0.5);
  EXPECT_EQ(logprobs["top_logprobs"][2], (Json{{"a", -1.0}, {"b", -2.0}, {"H", -0.5}}));
}

TEST_F(HttpServerTest, ChatLogprobsSpellTheText) {
  Json choice = Chat({{"logprobs", true}, {"top_logprobs", 1}, {"stop", "w"}}).json()["choices"][0];
  std::string bytes;
  for (const Json& token : choice["logprobs"]["content"]) {
    for (int byte : token["bytes"]) bytes += static_cast<char>(byte);
    EXPECT_EQ(token["top_logprobs"].size(), 1u);
  }
  EXPECT_EQ(bytes, choice["message"]["content"]);
  std::string streamed;
  for (const Json& event : Events(Chat({{"logprobs", true}, {"stop", "w"}, {"stream", true}}))) {
    if (!event.is_object() || event["choices"][0]["logprobs"].is_null()) continue;
    for (const Json& token : event["choices"][0]["logprobs"]["content"]) {
      for (int byte : token["bytes"]) streamed += static_cast<char>(byte);
    }
  }
  EXPECT_EQ(streamed, bytes);
}

TEST_F(HttpServerTest, SchemaErrorsNameTheField) {
  const std::pair<Json, const char*> cases[] = {
      {{{"temperature", -1}}, "temperature"},
      {{{"temperature", "hot"}}, "temperature"},
      {{{"top_p", 0}}, "top_p"},
      {{{"n", 2147483648}}, "n"},
      {{{"n", 0}}, "n"},
      {{{"max_tokens", 0}}, "max_tokens"},
      {{{"max_tokens", 1000}}, "messages"},
      {{{"top_logprobs", 21}, {"logprobs", true}}, "top_logprobs"},
      {{{"top_logprobs", 2}}, "top_logprobs"},
      {{{"stop", {"a", "b", "c", "d", "e"}}}, "stop"},
      {{{"stop", {""}}}, "stop"},
      {{{"messages", Json::array()}}, "messages"},
      {{{"messages", {{{"role", "user"}}}}}, "messages[0].content"},
      {{{"messages", {{{"role", "x"}, {"content", ""}}}}}, "messages[0].role"},
      {{{"messages", {{{"role", "tool"}, {"content", ""}}}}}, "messages"},
      {{{"stream_options", {{"include_usage", true}}}}, "stream_options"},
      {{{"frequency_penalty", 0.5}}, "frequency_penalty"},
      {{{"tools", {{{"type", "function"}}}}}, "tools"},
      {{{"response_format", {{"type", "json_object"}}}}, "response_format"},
      {{{"chat_template_kwargs", {{"chat_template", "x"}}}}, "chat_template_kwargs"},
      {{{"min_tokens", 9}, {"max_tokens", 5}}, "min_tokens"},
      {{{"stream", 1}}, "stream"}};
  for (const auto& [fields, param] : cases) {
    Reply reply = Chat(fields);
    EXPECT_EQ(reply.status, 400) << fields;
    EXPECT_EQ(reply.json()["error"]["param"], param) << reply.body;
    EXPECT_EQ(reply.json()["error"]["type"], "invalid_request_error");
  }
  EXPECT_EQ(Chat({{"model", "other"}}).status, 404);
  EXPECT_EQ(Complete({{"logprobs", 21}}).json()["error"]["param"], "logprobs");
  EXPECT_EQ(Complete({{"prompt", {300}}}).json()["error"]["param"], "prompt");
  EXPECT_EQ(Complete({{"prompt", ""}}).json()["error"]["param"], "prompt");
  EXPECT_EQ(Complete({{"prompt", Json::object()}}).json()["error"]["param"], "prompt");
  // Values that ask for nothing, null and unknown fields pass.
  Json fine = {
      {"frequency_penalty", 0},
      {"tools", Json::array()},
      {"response_format", {{"type", "text"}}},
      {"logit_bias", nullptr},
      {"zebra", 1},
      {"user", "me"},
      {"messages", {{{"role", "user"}, {"content", {{{"type", "text"}, {"text", "a"}}}}}}}};
  EXPECT_EQ(Chat(fine).status, 200);
}

TEST_F(HttpServerTest, MalformedInputIsRefusedAndTheServerLivesOn) {
  const std::pair<std::string, int> cases[] = {
      {PostText("/v1/completions", "{"), 400},
      {PostText("/v1/completions", "[]"), 400},
      {PostText("/v1/completions", "{\"prompt\":\"\xff\xfe\"}"), 400},
      {PostText("/v1/completions", "{\"prompt\":\"\\ud800\"}"), 400},
      {PostText("/v1/completions", std::string(100000, '[')), 400},
      {"NONSENSE\r\n\r\n", 400},
      {"GET / HTTP/9.9\r\n\r\n", 400},
      {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: "
       "chunked\r\n\r\n"
       "0\r\n\r\n",
       400},
      {"GET /health HTTP/1.1\r\nX: " + std::string(20000, 'a') + "\r\n\r\n", 431}};
  for (const auto& [bytes, status] : cases) {
    Reply reply = Raw(bytes);
    EXPECT_EQ(reply.status, status) << bytes.substr(0, 80);
    EXPECT_TRUE(reply.json().contains("error")) << reply.body;
  }
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(HttpServerTest, BoundsBodiesAndTime) {
  HttpServerOptions options;
  options.max_request_bytes = 1000;
  options.read_timeout_s = 0.05;
  Start(options);
  EXPECT_EQ(Raw(PostText("/v1/completions", std::string(100000, ' '))).status, 413);
  EXPECT_EQ(Raw("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" +
                std::string(2000, ' ') + "\r\n0\r\n\r\n")
                .status,
            413);
  EXPECT_EQ(Raw("POST /v1/completions HTTP/1.1\r\nHos").status, 408);
  EXPECT_EQ(Raw("POST /v1/completions HTTP/1.1\r\nContent-Length: 50\r\n\r\nabc").status, 408);
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(HttpServerTest, KeepsConnectionsAlive) {
  Client client(server_->port());
  for (int i = 0; i < 3; ++i) {
    client.Send(PostText("/v1/completions", R"({"prompt":"a","stream":true})"));
    EXPECT_EQ(Events(ReadReply(&client)).back(), "[DONE]");
    client.Send("GET /health HTTP/1.1\r\n\r\nGET /ready HTTP/1.1\r\n\r\n");
    EXPECT_EQ(ReadReply(&client).status, 200);
    EXPECT_EQ(ReadReply(&client).status, 200);
  }
  client.Send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(ReadReply(&client).status, 200);
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpServerTest, ADisconnectCancels) {
  engine_.Pause(true);
  for (const char* stream : {"false", "true"}) {
    size_t before = engine_.num_cancelled();
    Client client(server_->port());
    client.Send(
        PostText("/v1/completions", fmt::format(R"({{"prompt":"a","n":2,"stream":{}}})", stream)));
    engine_.WaitUntilRunning(2);
    client.Close();
    engine_.WaitUntilRunning(0);
    EXPECT_EQ(engine_.num_cancelled(), before + 2);
  }
  engine_.Pause(false);
  EXPECT_EQ(Complete().status, 200);
}

TEST_F(HttpServerTest, FullQueueIs429AndEngineErrorsAreTold) {
  engine_.LimitQueue(1);
  Reply reply = Complete({{"n", 2}, {"stream", true}});
  EXPECT_EQ(reply.status, 429);
  EXPECT_NE(reply.head.find("Retry-After"), std::string::npos);
  EXPECT_EQ(Complete().status, 200);
  engine_.FailAt(3);
  EXPECT_EQ(Complete().status, 500);
  std::vector<Json> events = Events(Complete({{"stream", true}}));
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(events[events.size() - 2]["error"]["message"], "the engine broke");
}

TEST_F(HttpServerTest, KeysGuardEveryRouteButHealth) {
  HttpServerOptions options;
  options.api_keys = {"secret", "other"};
  Start(options);
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Get("/ready").status, 200);
  for (const char* path : {"/v1/models", "/metrics"}) {
    EXPECT_EQ(Get(path).status, 401);
    EXPECT_EQ(Get(path, "Authorization: Bearer secre\r\n").status, 401);
    EXPECT_EQ(Get(path, "Authorization: Bearer secretsecret\r\n").status, 401);
    EXPECT_EQ(Get(path, "Authorization: Bearer \r\n").status, 401);
    EXPECT_EQ(Get(path, "Authorization: Bearer other\r\n").status, 200);
    EXPECT_EQ(Get(path, "X-Api-Key: secret\r\n").status, 200);
  }
  EXPECT_EQ(Chat().status, 401);
  EXPECT_EQ(Complete().status, 401);
}

TEST_F(HttpServerTest, DrainsAndStops) {
  engine_.Pause(true);
  Client client(server_->port());
  client.Send(PostText("/v1/completions", R"({"prompt":"a","max_tokens":100})"));
  engine_.WaitUntilRunning(1);
  EXPECT_FALSE(server_->Drain(0));
  EXPECT_EQ(Get("/ready").status, 503);
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Complete().status, 503);
  engine_.Pause(false);
  EXPECT_TRUE(server_->Drain(60));
  EXPECT_EQ(ReadReply(&client).json()["choices"][0]["text"], kReply);
  server_->Stop();
}

TEST_F(HttpServerTest, StopCancelsWhatRuns) {
  engine_.Pause(true);
  Client client(server_->port());
  client.Send(PostText("/v1/completions", R"({"prompt":"a","stream":true})"));
  engine_.WaitUntilRunning(1);
  server_->Stop();
  engine_.WaitUntilRunning(0);
}

TEST_F(HttpServerTest, ATakenPortIsAnError) {
  HttpServerOptions options;
  options.port = server_->port();
  auto second = HttpServer::Start(options, {tokenizer_.get(), chat_.get(), &engine_});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Message(second.status()).find("cannot listen on 127.0.0.1"), std::string::npos);
}

}  // namespace
}  // namespace cadre
