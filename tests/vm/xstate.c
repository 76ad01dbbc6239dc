/*
 * ptrace for User-mode Linux on processors with more registers than it has room for.
 *
 * Linux 6.1 as User-mode Linux keeps a process's extended registers (NT_X86_XSTATE) in 2696 bytes,
 * enough for AVX-512. Where the processor has AMX, they take 11008: the host then hands out the
 * first 2696, and takes back nothing but all of them, so every process dies of a fault. Here the
 * rest is added, as zeros: which registers are in use is noted in the first 576 bytes, and AMX,
 * which a process has to ask for by a system call that User-mode Linux does not have, never is.
 *
 * Loaded before libc (LD_PRELOAD). It includes no header, so that it needs a compiler and nothing
 * else; the numbers are those of linux/ptrace.h, linux/elf.h and asm/unistd_64.h.
 */

typedef unsigned long size_t;

struct iovec {
	void *iov_base;
	size_t iov_len;
};

extern long syscall(long number, ...);
extern void *memcpy(void *to, const void *from, size_t size);
extern void *memset(void *to, int byte, size_t size);

enum { SYS_ptrace = 101, NT_X86_XSTATE = 0x202 };
enum { PEEKTEXT = 1, PEEKUSER = 3, GETREGSET = 0x4204, SETREGSET = 0x4205 };

/* User-mode Linux 6.1 has one processor, and calls from one thread. */
static char area[1 << 16];
static size_t full;

static long get_xstate(long pid, struct iovec *theirs)
{
	struct iovec ours = { area, sizeof(area) };
	long failed = syscall(SYS_ptrace, GETREGSET, pid, NT_X86_XSTATE, &ours);

	if (failed)
		return failed;
	full = ours.iov_len;
	if (theirs->iov_len > full)
		theirs->iov_len = full;
	memcpy(theirs->iov_base, area, theirs->iov_len);
	return 0;
}

static long set_xstate(long pid, struct iovec *theirs)
{
	struct iovec ours = { area, full };

	if (theirs->iov_len >= full)
		return syscall(SYS_ptrace, SETREGSET, pid, NT_X86_XSTATE, theirs);
	memset(area, 0, full);
	memcpy(area, theirs->iov_base, theirs->iov_len);
	return syscall(SYS_ptrace, SETREGSET, pid, NT_X86_XSTATE, &ours);
}

long ptrace(long request, long pid, long address, long data)
{
	long word, failed;

	/* The first argument is an int for the caller, as is the process's number. */
	request = (int)request;
	pid = (int)pid;
	if (request == GETREGSET && address == NT_X86_XSTATE)
		return get_xstate(pid, (struct iovec *)data);
	if (request == SETREGSET && address == NT_X86_XSTATE)
		return set_xstate(pid, (struct iovec *)data);
	if (request < PEEKTEXT || request > PEEKUSER)
		return syscall(SYS_ptrace, request, pid, address, data);
	/* What is peeked comes back by the system call's last argument, and by libc's return value. */
	failed = syscall(SYS_ptrace, request, pid, address, &word);
	return failed ? failed : word;
}
