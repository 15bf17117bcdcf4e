package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Result is what a peer measured, all of it between the same two instants.
type Result struct {
	Bytes   uint64        `json:"bytes,omitempty"`   // of payload that came, each of them the right one
	Packets uint64        `json:"packets,omitempty"` // that came
	Elapsed time.Duration `json:"elapsed"`
	P50     time.Duration `json:"p50,omitempty"` // of what was timed one by one

	// CPU is what the processes used that were asked for, Foreign how many
	// processors others kept busy that are no part of this.
	CPU     time.Duration `json:"cpu"`
	Foreign float64       `json:"foreign"`

	// Congestion is the sender's TCP congestion control.
	Congestion string `json:"congestion,omitempty"`
}

// Usage measures from StartUsage to Stop.
type Usage struct {
	counted, aside []int
	start          time.Time

	// As of the start.
	ours, others, busy time.Duration
}

// StartUsage begins to measure what the counted processes, and the kernel's
// threads that receive packets for them, use of the processors. What those aside
// use is neither counted nor foreign.
func StartUsage(counted, aside []int) (*Usage, error) {
	u := &Usage{counted: append(kernelThreads(), counted...), aside: aside}
	var err error
	u.ours, u.others, u.busy, err = u.now()
	u.start = time.Now()
	return u, err
}

// Stop notes in r what has been used.
func (u *Usage) Stop(r *Result) error {
	r.Elapsed = time.Since(u.start)
	ours, others, busy, err := u.now()
	if err != nil {
		return err
	}
	r.CPU = ours - u.ours
	foreign := (busy - u.busy) - r.CPU - (others - u.others)
	// The kernel samples busy time at its ticks: a little below 0 is 0.
	r.Foreign = max(0, foreign.Seconds()/r.Elapsed.Seconds())
	return nil
}

func (u *Usage) now() (ours, others, busy time.Duration, err error) {
	if busy, err = busyTime(); err != nil {
		return 0, 0, 0, err
	}
	if ours, err = processTime(u.counted); err != nil {
		return 0, 0, 0, err
	}
	others, err = processTime(u.aside)
	return ours, others, busy, err
}

// processTime is the processor time of processes, that of their threads that
// have ended included. It is exact, unlike what /proc/PID/stat has.
func processTime(pids []int) (time.Duration, error) {
	const scheduler = 2 // CPUCLOCK_SCHED of the kernel
	var sum time.Duration
	for _, pid := range pids {
		var now unix.Timespec
		// clock_getcpuclockid(3)
		if err := unix.ClockGettime(int32(^pid<<3|scheduler), &now); err != nil {
			return 0, fmt.Errorf("cannot read the processor time of %d: %w", pid, err)
		}
		sum += time.Duration(now.Nano())
	}
	return sum, nil
}

// busyTime is how long the processors were busy, with what the hypervisor took
// away from them.
func busyTime() (time.Duration, error) {
	const tick = time.Second / 100 // USER_HZ
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := bytes.Fields(line) // cpu user nice system idle iowait irq softirq steal guest…
	if len(fields) < 9 {
		return 0, errors.New("cannot read /proc/stat: too few fields")
	}
	var sum int64
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseInt(string(fields[i]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("cannot read /proc/stat: %w", err)
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}

// kernelThreads are those that process packets when there are many: one a
// processor. Where they cannot be seen they are foreign work.
func kernelThreads() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !bytes.HasPrefix(comm, []byte("ksoftirqd/")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids = append(pids, pid)
		}
		if len(pids) == runtime.NumCPU() {
			break
		}
	}
	return pids
}
