#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

namespace cadre {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// O_NONBLOCK: opening a named pipe must not wait for its writer.
int OpenToRead(const std::string& path) {
  return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

// Its size, or why it cannot be read as a file.
absl::StatusOr<int64_t> RegularFileSize(int fd, const std::string& path) {
  struct stat info;
  if (fstat(fd, &info) != 0) return ErrnoError(path, "cannot stat", errno);
  if (S_ISDIR(info.st_mode)) return InvalidArgument("{}: is a folder, a file is needed", path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{}: is no regular file", path);
  return static_cast<int64_t>(info.st_size);
}

absl::Status WriteAllAt(int fd, const std::string& path, int64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = pwrite(fd, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(path, "cannot write", errno);
    bytes.remove_prefix(static_cast<size_t>(n));
    offset += n;
  }
  return absl::OkStatus();
}

std::string FolderOf(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

}  // namespace

absl::Status ErrnoError(const std::string& path, const std::string& what, int error) {
  const std::string line =
      fmt::format("{}: {}: {}", path, what, std::generic_category().message(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(line);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(line);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case ENOMEM:
    case EMFILE:
      return absl::ResourceExhaustedError(line);
    case EISDIR:
    case ENAMETOOLONG:
      return absl::InvalidArgumentError(line);
    default:
      return absl::UnavailableError(line);
  }
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  const Descriptor file(OpenToRead(path));
  if (file.get() < 0) return ErrnoError(path, "cannot open", errno);
  CADRE_ASSIGN_OR_RETURN(const int64_t size, RegularFileSize(file.get(), path));
  if (size > max_bytes) {
    return InvalidArgument("{}: {} bytes, at most {} are read", path, size, max_bytes);
  }
  std::string bytes(static_cast<size_t>(size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = read(file.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(path, "cannot read", errno);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

absl::Status WriteAll(int descriptor, const std::string& path, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = write(descriptor, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(path, "cannot write", errno);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status AppendWhole(int descriptor, const std::string& path, std::string_view bytes) {
  const off_t before = lseek(descriptor, 0, SEEK_END);
  if (before < 0) return ErrnoError(path, "cannot seek", errno);
  const absl::Status written = WriteAll(descriptor, path, bytes);
  if (written.ok()) return written;
  if (ftruncate(descriptor, before) != 0) return ErrnoError(path, "cannot cut", errno);
  return written;
}

absl::Status SyncFolder(const std::string& folder) {
  const Descriptor file(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (file.get() < 0) return ErrnoError(folder, "cannot open", errno);
  if (fsync(file.get()) != 0) return ErrnoError(folder, "cannot sync", errno);
  return absl::OkStatus();
}

absl::Status WriteFileAtomic(const std::string& path, std::string_view bytes) {
  CADRE_ASSIGN_OR_RETURN(auto writer, AtomicFileWriter::Create(path));
  CADRE_RETURN_IF_ERROR(writer.Append(bytes));
  return writer.Commit();
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const Descriptor file(OpenToRead(path));
  if (file.get() < 0) return ErrnoError(path, "cannot open", errno);
  CADRE_ASSIGN_OR_RETURN(const int64_t size, RegularFileSize(file.get(), path));
  MappedFile mapped;
  mapped.path_ = path;
  if (size == 0) return mapped;
  void* address = mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED, file.get(), 0);
  if (address == MAP_FAILED) return ErrnoError(path, "cannot map", errno);
  mapped.data_ = static_cast<const std::byte*>(address);
  mapped.size_ = static_cast<size_t>(size);
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

absl::StatusOr<FileReader> FileReader::Open(const std::string& path) {
  Descriptor file(OpenToRead(path));
  if (file.get() < 0) return ErrnoError(path, "cannot open", errno);
  FileReader reader;
  CADRE_ASSIGN_OR_RETURN(reader.size_, RegularFileSize(file.get(), path));
  reader.path_ = path;
  reader.descriptor_ = file.Release();
  // The same file, also where another one has taken its name meanwhile.
  const std::string same = fmt::format("/proc/self/fd/{}", reader.descriptor_);
  reader.direct_ = open(same.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  return reader;
}

FileReader::FileReader(FileReader&& other) noexcept { *this = std::move(other); }

FileReader& FileReader::operator=(FileReader&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(direct_, other.direct_);
  std::swap(size_, other.size_);
  return *this;
}

FileReader::~FileReader() {
  if (descriptor_ >= 0) close(descriptor_);
  if (direct_ >= 0) close(direct_);
}

bool FileReader::Cached(int64_t offset, int64_t count) const {
  // A read that may not wait (RWF_NOWAIT) would make the system read ahead.
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  const int64_t begin = offset / page * page;
  const auto bytes = static_cast<size_t>(offset + count - begin);
  void* map = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor_, begin);
  if (map == MAP_FAILED) return true;
  std::vector<unsigned char> pages((bytes + static_cast<size_t>(page) - 1) /
                                   static_cast<size_t>(page));
  const bool known = mincore(map, bytes, pages.data()) == 0;
  munmap(map, bytes);
  return !known || std::ranges::all_of(pages, [](unsigned char state) { return state & 1; });
}

std::span<const std::byte> FileReader::ReadDirect(int64_t offset, int64_t count,
                                                  const DirectWindow& window) const {
  if (direct_ < 0) return {};
  const int64_t begin = offset / kDirectAlignment * kDirectAlignment, end = offset + count;
  const int64_t wanted = (end - begin + kDirectAlignment - 1) / kDirectAlignment * kDirectAlignment;
  CADRE_CHECK(wanted <= std::ssize(window.bytes()), "{} bytes at {} into a window of {}", count,
              offset, window.bytes().size());
  int64_t have = 0;
  while (begin + have < end) {
    const ssize_t n = pread(direct_, window.bytes().data() + have,
                            static_cast<size_t>(wanted - have), begin + have);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return {};
    have += n;
    // The file ended here: nothing can be read from an unaligned place on.
    if (have % kDirectAlignment != 0 && begin + have < end) return {};
  }
  return window.bytes().subspan(static_cast<size_t>(offset - begin), static_cast<size_t>(count));
}

DirectWindow::DirectWindow(int64_t bytes)
    : size_(static_cast<size_t>((bytes + kDirectAlignment - 1) / kDirectAlignment *
                                kDirectAlignment)),
      data_(static_cast<std::byte*>(std::aligned_alloc(kDirectAlignment, size_))) {
  CADRE_CHECK(data_ != nullptr, "out of memory: {} bytes", size_);
}

absl::Status FileReader::ReadAt(int64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = pread(descriptor_, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(path_, "cannot read", errno);
    if (n == 0) {
      return DataLoss("{}: ends at byte {}; it had {} when it was opened", path_, offset, size_);
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += n;
  }
  return absl::OkStatus();
}

absl::StatusOr<InPlaceFile> InPlaceFile::Create(const std::string& path, int64_t size) {
  InPlaceFile file(path, open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (file.descriptor_ < 0) return ErrnoError(path, "cannot create", errno);
  int error = 0;
  do {
    error = size == 0 ? 0 : posix_fallocate(file.descriptor_, 0, size);
  } while (error == EINTR);
  if (error == 0) return file;
  unlink(path.c_str());
  return ErrnoError(path, fmt::format("cannot reserve {} bytes", size), error);
}

absl::StatusOr<InPlaceFile> InPlaceFile::Open(const std::string& path) {
  InPlaceFile file(path, open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (file.descriptor_ < 0) return ErrnoError(path, "cannot open", errno);
  return file;
}

InPlaceFile::InPlaceFile(InPlaceFile&& other) noexcept { *this = std::move(other); }

InPlaceFile& InPlaceFile::operator=(InPlaceFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

InPlaceFile::~InPlaceFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::Status InPlaceFile::WriteAt(int64_t offset, std::string_view bytes) const {
  return WriteAllAt(descriptor_, path_, offset, bytes);
}

absl::Status InPlaceFile::Sync() const {
  if (fsync(descriptor_) != 0) return ErrnoError(path_, "cannot sync", errno);
  return absl::OkStatus();
}

absl::StatusOr<AtomicFileWriter> AtomicFileWriter::Create(const std::string& path) {
  AtomicFileWriter writer;
  writer.path_ = path;
  // Names left behind by a crash, or taken by another writer of this process, are passed over.
  for (int i = 0; i < 1000; ++i) {
    writer.temporary_ = fmt::format("{}.tmp{}-{}", path, getpid(), i);
    writer.descriptor_ =
        open(writer.temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (writer.descriptor_ >= 0) return writer;
    if (errno != EEXIST) return ErrnoError(path, "cannot create", errno);
  }
  return ErrnoError(path, "cannot create a temporary file beside it", EEXIST);
}

AtomicFileWriter::AtomicFileWriter(AtomicFileWriter&& other) noexcept { *this = std::move(other); }

AtomicFileWriter& AtomicFileWriter::operator=(AtomicFileWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_, other.temporary_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

AtomicFileWriter::~AtomicFileWriter() { Discard(); }

void AtomicFileWriter::Discard() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  descriptor_ = -1;
  unlink(temporary_.c_str());
}

absl::Status AtomicFileWriter::Append(std::string_view bytes) {
  CADRE_CHECK(descriptor_ >= 0, "{}: written after Commit", path_);
  return WriteAll(descriptor_, path_, bytes);
}

absl::Status AtomicFileWriter::Append(std::span<const std::byte> bytes) {
  return Append(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

absl::Status AtomicFileWriter::WriteAt(int64_t offset, std::string_view bytes) {
  CADRE_CHECK(descriptor_ >= 0, "{}: written after Commit", path_);
  return WriteAllAt(descriptor_, path_, offset, bytes);
}

absl::Status AtomicFileWriter::Commit() {
  CADRE_CHECK(descriptor_ >= 0, "{}: committed twice", path_);
  if (fsync(descriptor_) != 0) return ErrnoError(path_, "cannot sync", errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) {
    return ErrnoError(path_, "cannot rename the finished file to it", errno);
  }
  close(descriptor_);
  descriptor_ = -1;
  return SyncFolder(FolderOf(path_));
}

}  // namespace cadre
