package resolvconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// recordName is the name under which the program keeps what is ours. Debian's puts
// records of that beginning before all others; openresolv is told to.
const recordName = "tun.vpnproviderd"

// programLimit bounds one run of the program. It waits up to 10 s for others
// that run it.
const programLimit = 12 * time.Second

// variant is whose program it is.
type variant int

const (
	openresolv variant = iota + 1
	debian
)

// Program is a routing.Resolver that runs the program resolvconf, openresolv's
// or Debian's, for hosts where it makes resolv.conf. Methods may be called
// concurrently; they wait for each other. It holds no resources.
//
// What is set is a record with a name of its own, which a later process finds.
// With openresolv the tunnel's servers are the only ones that are asked; with
// Debian's they are the first. Neither is told of split DNS: with match domains
// they are asked for all names, and a warning is logged.
type Program struct {
	log     *slog.Logger
	file    string   // that it makes
	dirs    []string // where it is looked for
	records string   // where Debian's keeps records

	mu sync.Mutex

	// ours: there may be a record of ours. Not known before looked.
	ours, looked bool
}

// NewProgram uses the program of this host, which makes the file. It is looked
// for whenever it is needed, in the folders of system programs, whatever PATH
// says.
func NewProgram(file string, log *slog.Logger) *Program {
	return &Program{
		log: log, file: file, records: "/run/resolvconf/interface",
		dirs: []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"},
	}
}

// PerLink is false: the program serves the whole host.
func (p *Program) PerLink() bool { return false }

// Asker is nobody: each program asks for itself, along the routes.
func (p *Program) Asker(context.Context) (uint32, error) { return 0, nil }

// Check says why there is no program that can be used; nil: there is one.
func (p *Program) Check(ctx context.Context) error {
	_, _, err := p.find(ctx)
	return err
}

// Set implements routing.Resolver. A program that does not end in time is a
// context.DeadlineExceeded.
func (p *Program) Set(ctx context.Context, r routing.Resolution) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	path, v, err := p.find(ctx)
	if err != nil {
		return err
	}
	args := []string{"-a", recordName}
	if v == openresolv {
		args = []string{"-x", "-m", "0", "-a", recordName}
	}
	p.ours, p.looked = true, true
	if _, err := run(ctx, compose(r, nil), path, args...); err != nil {
		return fmt.Errorf("%w%s", err, p.help())
	}
	if err := p.used(r.DNS.Servers); err != nil {
		return err
	}
	if len(r.DNS.Match) > 0 {
		p.log.Warn("resolvconf is not told of split DNS: the tunnel's servers are asked for all names",
			"domains", strings.Join(r.DNS.Match, " "))
	}
	return nil
}

// used looks whether the host asks the servers, or one of its own that the
// program may have told.
func (p *Program) used(servers []netip.Addr) error {
	found, _, err := Read(p.file)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(found, func(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(servers, a) }) {
		return nil
	}
	return fmt.Errorf("%s is not made by resolvconf, which does not change it: "+
		"choose another --resolver, or let it be what the manual of resolvconf says", p.file)
}

// Revert implements routing.Resolver.
func (p *Program) Revert(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.look(ctx); err != nil || !p.ours {
		return err
	}
	path, v, err := p.find(ctx)
	if err != nil {
		return err
	}
	args := []string{"-d", recordName}
	if v == openresolv {
		args = []string{"-f", "-d", recordName} // that there is none is no error
	}
	if _, err := run(ctx, "", path, args...); err != nil {
		return fmt.Errorf("%w%s", err, p.help())
	}
	p.ours = false
	return nil
}

// Leftover implements routing.Resolver.
func (p *Program) Leftover(ctx context.Context) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.look(ctx)
	return p.ours, err
}

// look finds, once, what an earlier process left. What cannot be read cannot
// have been written, with these privileges; but a program that does not end in
// time, as one that waits for a lock, has said nothing. p.mu is held.
func (p *Program) look(ctx context.Context) error {
	if p.looked {
		return nil
	}
	all, err := p.list(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	p.looked = true
	if err != nil {
		p.log.Debug("cannot look for what resolvconf has of ours", "error", err)
		return nil
	}
	p.ours = slices.ContainsFunc(all, func(r entryOf) bool { return r.name == recordName })
	return nil
}

// Original gives the servers and search domains that the host has without the
// tunnel's.
func (p *Program) Original() (servers []netip.Addr, domains []string, err error) {
	all, err := p.list(context.Background())
	if err != nil {
		return nil, nil, err
	}
	for _, r := range all {
		if r.name != recordName {
			s, d := parse(r.content)
			servers, domains = append(servers, s...), append(domains, d...)
		}
	}
	return servers, domains, nil
}

// entryOf is what the program was told by one of those who tell it.
type entryOf struct {
	name    string
	content []byte
}

// list gives all records.
func (p *Program) list(ctx context.Context) ([]entryOf, error) {
	path, v, err := p.find(ctx)
	if err != nil {
		return nil, err
	}
	if v == debian { // which lists them for root alone
		return p.listFiles()
	}
	out, err := run(ctx, "", path, "-l")
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && len(bytes.TrimSpace(out)) == 0 {
		return nil, nil // it says so that there are none
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the records of resolvconf: %w", err)
	}
	return split(out), nil
}

func (p *Program) listFiles() ([]entryOf, error) {
	files, err := filepath.Glob(filepath.Join(p.records, "*"))
	if err != nil {
		return nil, err
	}
	var all []entryOf
	for _, file := range files {
		text, err := content(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read the records of resolvconf: %w", err)
		}
		all = append(all, entryOf{filepath.Base(file), text})
	}
	return all, nil
}

// split reads what openresolv lists.
func split(out []byte) []entryOf {
	var all []entryOf
	for line := range bytes.Lines(out) {
		if name, ok := bytes.CutPrefix(line, []byte("# resolv.conf from ")); ok {
			all = append(all, entryOf{name: string(bytes.TrimSpace(name))})
		} else if len(all) > 0 {
			last := &all[len(all)-1]
			last.content = append(last.content, line...)
		}
	}
	return all
}

// find looks for the program, and whose it is. systemd's, which is resolvectl
// under another name, is none.
func (p *Program) find(ctx context.Context) (path string, v variant, err error) {
	for _, dir := range p.dirs {
		path := filepath.Join(dir, "resolvconf")
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		out, err := run(ctx, "", path, "--version")
		exit := (*exec.ExitError)(nil)
		switch {
		case bytes.HasPrefix(out, []byte("openresolv ")):
			return path, openresolv, nil
		case bytes.HasPrefix(out, []byte("Debian resolvconf ")):
			return path, debian, nil
		case errors.As(err, &exit) && exit.ExitCode() == 99: // an older one of Debian's, which does not know the option
			return path, debian, nil
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			return "", 0, err
		}
	}
	return "", 0, fmt.Errorf("there is neither openresolv's nor Debian's resolvconf in %s", strings.Join(p.dirs, ", "))
}

// help says what can be done where the program was refused something.
func (p *Program) help() string {
	if os.Geteuid() == 0 {
		return ""
	}
	return " (resolvconf works for root alone: use systemd-resolved, run the daemon as root, or start it with --resolver none)"
}

// run runs a program to its end, with nothing in its environment that is not
// fixed, and gives what it printed. What it started is killed with it when the
// time is over.
func run(ctx context.Context, stdin, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, programLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Stdin = strings.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a service that it restarts may keep the output
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		const enough = 300
		text := strings.Join(strings.Fields(said.String()), " ")
		err = fmt.Errorf("cannot run %s %s: %w: %.*q", path, strings.Join(args, " "), err, enough, text)
	}
	return out.Bytes(), err
}

// Read gives the servers and search domains of a file as the C library reads
// it.
func Read(file string) (servers []netip.Addr, domains []string, err error) {
	text, err := content(file)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read %s: %w", file, err)
	}
	servers, domains = parse(text)
	return servers, domains, nil
}
