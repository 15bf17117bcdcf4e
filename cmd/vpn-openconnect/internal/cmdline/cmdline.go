// Package cmdline reads the arguments of vpn-openconnect, which are those of
// openconnect and a few of its own. It knows openconnect's options as getopt
// does, to find the server among them, to refuse those that cannot be, and to
// tell what may be written down from what is a secret.
package cmdline

import (
	"fmt"
	"slices"
	"strings"
)

// Command is what the arguments ask for.
type Command struct {
	Help, Version bool // then nothing else counts

	Bus         string // address; "" is the system bus
	ConfigName  string // "" where not given
	OpenConnect string // the program; "" where not given

	Server string   // "" where not given
	Args   []string // for openconnect, in order, the server among them
	Quiet  bool     // openconnect's output will not tell of the connection

	keep []string // options that may be written down, as --name or --name=value
}

// Parse reads the arguments after the program's name. readFile reads the files
// of --config, which openconnect reads as well.
func Parse(args []string, readFile func(name string) ([]byte, error)) (Command, error) {
	p := parser{options: options(), readFile: readFile}
	if err := p.all(args); err != nil {
		return Command{}, err
	}
	return p.cmd, nil
}

type parser struct {
	options  map[string]option
	readFile func(name string) ([]byte, error)
	cmd      Command
}

func (p *parser) all(args []string) error {
	for len(args) > 0 {
		arg := args[0]
		var n int // arguments used
		var err error
		switch {
		case arg == "--":
			if len(args) > 1 {
				p.cmd.Server = args[len(args)-1]
			}
			p.pass(args...)
			return nil
		case strings.HasPrefix(arg, "--"):
			n, err = p.long(args)
		case strings.HasPrefix(arg, "-") && arg != "-":
			n, err = p.short(args)
		default:
			p.cmd.Server = arg
			p.pass(arg)
			n = 1
		}
		if err != nil {
			return err
		}
		args = args[n:]
	}
	return nil
}

func (p *parser) pass(args ...string) { p.cmd.Args = append(p.cmd.Args, args...) }

// long reads --name, --name=value or --name value.
func (p *parser) long(args []string) (n int, err error) {
	name, value, given := strings.Cut(args[0][2:], "=")
	if own := p.own(name); own != nil {
		if !given && len(args) < 2 {
			return 0, fmt.Errorf("--%s needs a value", name)
		}
		if given {
			*own = value
			return 1, nil
		}
		*own = args[1]
		return 2, nil
	}
	switch name {
	case "help":
		p.cmd.Help = true
		return 1, nil
	case "version":
		p.cmd.Version = true
		return 1, nil
	}
	n = 1
	name, opt, known := p.find(name)
	if known && opt.value && !given {
		if len(args) < 2 {
			return 0, fmt.Errorf("--%s needs a value", name)
		}
		value, n = args[1], 2
	}
	p.pass(args[:n]...)
	if !known {
		return n, nil
	}
	return n, p.note(name, opt, value)
}

// own are the options of vpn-openconnect itself.
func (p *parser) own(name string) *string {
	switch name {
	case "bus":
		return &p.cmd.Bus
	case "config-name":
		return &p.cmd.ConfigName
	case "openconnect":
		return &p.cmd.OpenConnect
	}
	return nil
}

// find also takes an unambiguous beginning of a name, as getopt does.
func (p *parser) find(name string) (string, option, bool) {
	if opt, ok := p.options[name]; ok {
		return name, opt, true
	}
	var found []string
	for candidate := range p.options {
		if strings.HasPrefix(candidate, name) {
			found = append(found, candidate)
		}
	}
	if len(found) != 1 {
		return name, option{}, false
	}
	return found[0], p.options[found[0]], true
}

// short reads a cluster such as -vqu name or -uname.
func (p *parser) short(args []string) (n int, err error) {
	letters := args[0][1:]
	n = 1
	for letters != "" && err == nil {
		letter := letters[0]
		letters = letters[1:]
		name, opt, known := p.byLetter(letter)
		value := ""
		if known && opt.value {
			if value, letters = letters, ""; value == "" {
				if len(args) < 2 {
					return 0, fmt.Errorf("-%c needs a value", letter)
				}
				value, n = args[1], 2
			}
		}
		switch {
		case letter == 'h':
			p.cmd.Help = true
		case letter == 'V':
			p.cmd.Version = true
		case known:
			err = p.note(name, opt, value)
		}
	}
	p.pass(args[:n]...)
	return n, err
}

func (p *parser) byLetter(letter byte) (string, option, bool) {
	for name, opt := range p.options {
		if opt.short == letter {
			return name, opt, true
		}
	}
	return "", option{}, false
}

// note draws the consequences of one option.
func (p *parser) note(name string, opt option, value string) error {
	switch opt.kind {
	case refused:
		return fmt.Errorf("--%s cannot be used here: %s", name, refusal(name))
	case private:
		return nil
	case quieting:
		p.cmd.Quiet = true
	case names:
		p.cmd.Server = value
		return nil // kept as the server
	case file:
		if err := p.configFile(value); err != nil {
			return err
		}
	case plain:
	}
	p.remember(name, opt, value)
	return nil
}

// maxKept is the daemon's limit of a text, in bytes.
const maxKept = 255

func (p *parser) remember(name string, opt option, value string) {
	text := "--" + name
	if opt.value {
		text += "=" + value
	}
	if len(text) <= maxKept && !strings.Contains(value, "pin-value") { // of a PKCS#11 URL
		p.cmd.keep = append(p.cmd.keep, text)
	}
}

// configFile looks into a file of openconnect's for what would be refused as
// an argument: one option a line, without the dashes.
func (p *parser) configFile(name string) error {
	text, err := p.readFile(name)
	if err != nil {
		return fmt.Errorf("cannot read the options in %s: %w", name, err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimLeft(strings.TrimRight(line, "\r\n"), " \t\r")
		end := strings.IndexAny(line, " \t=")
		if end < 0 {
			end = len(line)
		}
		opt := p.options[line[:end]]
		value := strings.TrimLeft(line[end:], " \t")
		value = strings.TrimLeft(strings.TrimPrefix(value, "="), " \t")
		switch opt.kind {
		case refused:
			return fmt.Errorf("%s: %s cannot be used here: %s", name, line[:end], refusal(line[:end]))
		case quieting:
			p.cmd.Quiet = true
		case names:
			p.cmd.Server = value
		case plain, private, file: // file: openconnect refuses it there
		}
	}
	return nil
}

// Name is what a config for this command is called by default: the server as
// it was typed, without what a URL may have of secrets.
func (c Command) Name() string {
	if c.ConfigName != "" {
		return c.ConfigName
	}
	return publicServer(c.Server)
}

func publicServer(server string) string {
	server, _, _ = strings.Cut(server, "?")
	server, _, _ = strings.Cut(server, "#")
	scheme, rest, ok := strings.Cut(server, "://")
	if !ok {
		scheme, rest = "", server
	}
	authority, path, _ := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		authority = authority[at+1:]
	}
	if path != "" {
		authority += "/" + path
	}
	if scheme != "" {
		return scheme + "://" + authority
	}
	return authority
}

// The keys of a config's data.
const (
	keyServer  = "server"
	keyOptions = "options"
)

// Data is what a config keeps of the command: no secrets, as every program of
// the user can read it.
func (c Command) Data() map[string]any {
	data := map[string]any{}
	if server := publicServer(c.Server); server != "" && len(server) <= maxKept {
		data[keyServer] = server
	}
	if len(c.keep) > 0 {
		data[keyOptions] = c.keep
	}
	return data
}

// WithData completes a command that names no server by what a config keeps.
// Options of the command come after the kept ones and so win. Any program of
// the user may have made the config: what would be refused as an argument is
// refused here as well, and so is what is no option of openconnect's.
func (c Command) WithData(data map[string]any, readFile func(name string) ([]byte, error)) (Command, error) {
	server, _ := data[keyServer].(string)
	if server == "" || strings.HasPrefix(server, "-") {
		return Command{}, fmt.Errorf("the config %q names no server", c.ConfigName)
	}
	kept, err := texts(data[keyOptions])
	if err != nil {
		return Command{}, fmt.Errorf("cannot use the options of the config %q: %w", c.ConfigName, err)
	}
	p := parser{options: options(), readFile: readFile}
	if err := p.all(slices.Concat(kept, c.Args)); err != nil {
		return Command{}, fmt.Errorf("cannot use the options of the config %q: %w", c.ConfigName, err)
	}
	p.cmd.Server = server
	p.cmd.Args = append(p.cmd.Args, server)
	p.cmd.Bus, p.cmd.ConfigName, p.cmd.OpenConnect = c.Bus, c.ConfigName, c.OpenConnect
	return p.cmd, nil
}

// texts takes a list of options as D-Bus brings it, each --name or
// --name=value.
func texts(value any) ([]string, error) {
	var list []string
	switch v := value.(type) {
	case nil:
	case []string:
		list = v
	case []any:
		for _, item := range v {
			text, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("%v is not a text", item)
			}
			list = append(list, text)
		}
	default:
		return nil, fmt.Errorf("they are not a list of texts")
	}
	known := options()
	for _, text := range list {
		name, _, given := strings.Cut(strings.TrimPrefix(text, "--"), "=")
		opt, ok := known[name]
		if !ok || !strings.HasPrefix(text, "--") || opt.value != given {
			return nil, fmt.Errorf("%q is not one", text)
		}
	}
	return list, nil
}
