package wgconf

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// maxSize is how long a file may be, in bytes.
const maxSize = 1 << 20

// LineError is something wrong with a file. It never holds a value that could be
// a key.
type LineError struct {
	File string
	Line int
	Key  string // as it is written there; "" for what is about a whole line
	Text string
}

func (p LineError) Error() string {
	if p.Key == "" {
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", p.File, p.Line, p.Key, p.Text)
}

// Parse reads the content of a file, whose name is for messages. The error
// joins all problems, each a LineError.
func Parse(file string, content []byte) (Config, error) {
	p := parser{file: file, had: map[string]bool{}, config: Config{MTU: DefaultMTU}}
	if len(content) > maxSize {
		return Config{}, fmt.Errorf("%s: is larger than %d bytes", file, maxSize)
	}
	content = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf")) // some editors begin with it
	for text := range bytes.Lines(content) {
		p.line++
		code, _, _ := strings.Cut(string(text), "#")
		p.read(strings.TrimSpace(code))
	}
	p.end()
	if err := errors.Join(p.problems...); err != nil {
		return Config{}, err
	}
	return p.config, nil
}

// parser reads a file line by line.
type parser struct {
	file     string
	line     int
	section  section         // that is being read
	had      map[string]bool // the names of sections so far
	peers    []int           // the lines in which they began
	config   Config
	problems []error
}

// section is where one began, and which keys it had.
type section struct {
	name string // in lower case; "" before the first
	line int
	keys map[string]bool // in lower case
}

const (
	interfaceSection = "interface"
	peerSection      = "peer"
)

func (p *parser) refuse(line int, key, format string, args ...any) {
	p.problems = append(p.problems, LineError{p.file, line, key, fmt.Sprintf(format, args...)})
}

// read reads one line without its comment.
func (p *parser) read(code string) {
	if code == "" {
		return
	}
	if strings.HasPrefix(code, "[") {
		p.begin(code)
		return
	}
	key, value, ok := strings.Cut(code, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	switch name := strings.ToLower(key); {
	case !ok || !isWord(key):
		p.refuse(p.line, "", "is neither a section nor Key = value")
	case p.section.name == "":
		p.refuse(p.line, key, "stands before the first section")
	case p.section.keys[name] && !repeatable(name):
		p.refuse(p.line, key, "is given twice")
	default:
		p.section.keys[name] = true
		if err := p.set(name, value); err != nil {
			p.refuse(p.line, key, "%v", err)
		}
	}
}

// isWord keeps a key that stands where the name of one should from being
// shown.
func isWord(key string) bool {
	return key != "" && len(key) <= 32 && !strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

func (p *parser) begin(code string) {
	p.finish()
	name := strings.ToLower(strings.Trim(code, "[]"))
	switch {
	case strings.ToLower(code) == "[interface]":
		if p.had[name] {
			p.refuse(p.line, "", "is a second [Interface]")
		}
	case strings.ToLower(code) == "[peer]":
		p.config.Peers = append(p.config.Peers, Peer{})
		p.peers = append(p.peers, p.line)
	default:
		p.refuse(p.line, "", "is an unknown section: there are [Interface] and [Peer]")
		name = "unknown"
	}
	p.had[name] = true
	p.section = section{name: name, line: p.line, keys: map[string]bool{}}
}

// finish looks at a section as a whole.
func (p *parser) finish() {
	needs := map[string][]string{interfaceSection: {"PrivateKey", "Address"}, peerSection: {"PublicKey"}}
	for _, key := range needs[p.section.name] {
		if !p.section.keys[strings.ToLower(key)] {
			p.refuse(p.section.line, key, "is missing in this section")
		}
	}
}

// end looks at the file as a whole.
func (p *parser) end() {
	p.finish()
	if !p.had[interfaceSection] {
		p.refuse(max(p.line, 1), "", "the file ends without a section [Interface]")
	}
	if !p.had[peerSection] {
		p.refuse(max(p.line, 1), "", "the file ends without a section [Peer]")
	}
	if len(p.problems) == 0 {
		p.compare()
	}
}

// compare looks for keys that are there twice.
func (p *parser) compare() {
	seen := map[Key]string{p.config.PrivateKey.PublicKey(): "is this end's own: it must be the other end's"}
	for i, peer := range p.config.Peers {
		if text, twice := seen[peer.PublicKey]; twice {
			p.refuse(p.peers[i], "PublicKey", "%s", text)
		}
		seen[peer.PublicKey] = "is another peer's, too"
	}
}

func (p *parser) set(key, value string) error {
	switch p.section.name {
	case interfaceSection:
		return p.config.set(key, value)
	case peerSection:
		return p.config.Peers[len(p.config.Peers)-1].set(key, value)
	default:
		return nil // the section was refused
	}
}
