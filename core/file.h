// Files: whole reads with a bound, read-only mappings, reads in pieces, and writes that are whole
// or absent.
//
//   CADRE_ASSIGN_OR_RETURN(auto writer, AtomicFileWriter::Create(path));
//   CADRE_RETURN_IF_ERROR(writer.Append(bytes));
//   return writer.Commit();   // fsync, rename over `path`, fsync of the folder
//
// Errors name the path and what the system said: kNotFound, kPermissionDenied, kResourceExhausted
// (disk full, quota), kInvalidArgument (a folder, a bound exceeded), kUnavailable for the rest.
// Objects may move between threads; one thread uses one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/status.h"

namespace cadre {

// "path: what: No space left on device", with the code that fits `error` (an errno value).
absl::Status ErrnoError(const std::string& path, const std::string& what, int error);

// The whole of a regular file; refused above `max_bytes` before anything is allocated.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes = int64_t{1} << 30);

// Replaces `path` by `bytes`: after a crash at any moment either the old or the new file is there.
absl::Status WriteFileAtomic(const std::string& path, std::string_view bytes);

// Makes the names in `folder` (created, renamed, removed files) survive a power cut.
absl::Status SyncFolder(const std::string& folder);

// A regular file mapped read-only. Truncating the file while it is mapped kills readers by SIGBUS,
// so files are replaced by rename, never rewritten in place.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  // Lives as long as this object, and stays where it is when the object moves.
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Room to read into past the system's cache.
inline constexpr int64_t kDirectAlignment = 4096;
class DirectWindow {
 public:
  explicit DirectWindow(int64_t bytes);  // rounded up to kDirectAlignment
  std::span<std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  size_t size_;
  std::unique_ptr<std::byte, Free> data_;
};

// A regular file read in pieces, where a mapping would keep every page once read in the process's
// memory, or where the file may shrink: that is an error here, never a signal.
class FileReader {
 public:
  static absl::StatusOr<FileReader> Open(const std::string& path);
  FileReader(FileReader&& other) noexcept;
  FileReader& operator=(FileReader&& other) noexcept;
  ~FileReader();

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // when it was opened
  // Whether the system's cache has all of these bytes, or that cannot be told (mincore(2)).
  bool Cached(int64_t offset, int64_t count) const;
  // Reads past the system's cache, for bytes that are read once; from any thread. The part of
  // `window` that has [offset, offset + count), which it holds with kDirectAlignment to spare at
  // either end; empty where the file or its system cannot, or it ends before: then ReadAt says.
  std::span<const std::byte> ReadDirect(int64_t offset, int64_t count,
                                        const DirectWindow& window) const;
  // Fills `bytes` from `offset` on; kDataLoss where the file ends before. From any thread.
  absl::Status ReadAt(int64_t offset, std::span<std::byte> bytes) const;

 private:
  FileReader() = default;
  std::string path_;
  int descriptor_ = -1;
  int direct_ = -1;  // for ReadDirect; -1: not possible
  int64_t size_ = 0;
};

// A file of known size that several processes fill, each its own ranges. Its room is reserved when
// it is made, so a full disk is an error there and never a signal later. WriteAt and Sync from any
// thread.
class InPlaceFile {
 public:
  // Replaces what is there. kResourceExhausted: no room for `size` bytes; nothing is left then.
  static absl::StatusOr<InPlaceFile> Create(const std::string& path, int64_t size);
  static absl::StatusOr<InPlaceFile> Open(const std::string& path);
  InPlaceFile(InPlaceFile&& other) noexcept;
  InPlaceFile& operator=(InPlaceFile&& other) noexcept;
  ~InPlaceFile();

  absl::Status WriteAt(int64_t offset, std::string_view bytes) const;
  absl::Status Sync() const;

 private:
  InPlaceFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  std::string path_;
  int descriptor_ = -1;
};

// A new file beside `path` that takes its place on Commit; removed when destroyed before that.
class AtomicFileWriter {
 public:
  static absl::StatusOr<AtomicFileWriter> Create(const std::string& path);
  AtomicFileWriter(AtomicFileWriter&& other) noexcept;
  AtomicFileWriter& operator=(AtomicFileWriter&& other) noexcept;
  ~AtomicFileWriter();

  const std::string& path() const { return path_; }
  absl::Status Append(std::string_view bytes);
  absl::Status Append(std::span<const std::byte> bytes);
  // Overwrites bytes that Append has written already.
  absl::Status WriteAt(int64_t offset, std::string_view bytes);
  absl::Status Commit();

 private:
  AtomicFileWriter() = default;
  void Discard();
  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
};

// All of `bytes` to an open descriptor, restarted after signals and short writes.
absl::Status WriteAll(int descriptor, const std::string& path, std::string_view bytes);

// All of `bytes` at the end of an open file, or nothing: what a failed write (a full disk) left of
// them is cut off again. One process at a time appends.
absl::Status AppendWhole(int descriptor, const std::string& path, std::string_view bytes);

}  // namespace cadre
