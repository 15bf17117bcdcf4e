package cmdline

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func noFile(string) ([]byte, error) { return nil, os.ErrNotExist }

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		args string
		want Command
		keep string
	}{
		{"vpn.example", Command{Server: "vpn.example", Args: []string{"vpn.example"}}, ""},
		{
			"--bus unix:path=/x --config-name=Work vpn.example --openconnect /opt/oc -u me",
			Command{Bus: "unix:path=/x", ConfigName: "Work", OpenConnect: "/opt/oc", Server: "vpn.example", Args: []string{"vpn.example", "-u", "me"}},
			"--user=me",
		},
		{
			"--user --bus vpn.example", // a user of that name
			Command{Server: "vpn.example", Args: []string{"--user", "--bus", "vpn.example"}}, "--user=--bus",
		},
		{
			"-vvume --protocol gp https://gp.example/gw --passwd-on-stdin",
			Command{Server: "https://gp.example/gw", Args: []string{"-vvume", "--protocol", "gp", "https://gp.example/gw", "--passwd-on-stdin"}},
			"--verbose --verbose --user=me --protocol=gp",
		},
		{
			"-q -m 1300 -- vpn.example",
			Command{Server: "vpn.example", Quiet: true, Args: []string{"-q", "-m", "1300", "--", "vpn.example"}},
			"--quiet --mtu=1300",
		},
		{
			"-- vpn.example --bus x", // too many for openconnect, which will say so
			Command{Server: "x", Args: []string{"--", "vpn.example", "--bus", "x"}}, "",
		},
		{
			"--server=a.example --future --other=1 --no-dt",
			Command{Server: "a.example", Args: []string{"--server=a.example", "--future", "--other=1", "--no-dt"}},
			"--no-dtls",
		},
		{
			"-C COOKIE --cookie=a -p pass -F f:o=v --token-secret s --proxy http://u:p@h --key-password k --mca-key-password m vpn.example",
			Command{Server: "vpn.example", Args: []string{
				"-C", "COOKIE", "--cookie=a", "-p", "pass", "-F", "f:o=v", "--token-secret", "s",
				"--proxy", "http://u:p@h", "--key-password", "k", "--mca-key-password", "m", "vpn.example",
			}},
			"",
		},
		{
			"-c pkcs11:id=1;pin-value=1234 -k /home/me/key.pem vpn.example",
			Command{Server: "vpn.example", Args: []string{"-c", "pkcs11:id=1;pin-value=1234", "-k", "/home/me/key.pem", "vpn.example"}},
			"--sslkey=/home/me/key.pem",
		},
		{"--help", Command{Help: true}, ""},
		{"-V", Command{Version: true, Args: []string{"-V"}}, ""},
		{"-vh", Command{Help: true, Args: []string{"-vh"}}, "--verbose"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got, err := Parse(strings.Fields(tt.args), noFile)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreUnexported(Command{})); diff != "" {
				t.Errorf("command (-want +got):\n%s", diff)
			}
			if keep := strings.Join(got.keep, " "); keep != tt.keep {
				t.Errorf("keeps %q, want %q", keep, tt.keep)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for args, says := range map[string]string{
		"--background v":      "session lives as long",
		"-b v":                "session lives as long",
		"-vqb v":              "session lives as long",
		"--back v":            "session lives as long",
		"--pid-file=/x v":     "session lives as long",
		"-U nobody v":         "run as you",
		"-Unobody v":          "run as you",
		"--setuid=nobody v":   "run as you",
		"--script /x v":       "is the script",
		"-s/x v":              "is the script",
		"-S v":                "is the script",
		"-i tun0 v":           "names the interface",
		"--interf tun0 v":     "names the interface",
		"--authenticate v":    "makes no tunnel",
		"--cookieonly v":      "makes no tunnel",
		"--user":              "--user needs a value",
		"v -u":                "-u needs a value",
		"--bus":               "--bus needs a value",
		"--config /missing v": "cannot read the options in /missing",
	} {
		t.Run(args, func(t *testing.T) {
			if _, err := Parse(strings.Fields(args), noFile); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("error %v, want one with %q", err, says)
			}
		})
	}
}

func TestConfigFile(t *testing.T) {
	read := func(text string) func(string) ([]byte, error) {
		return func(name string) ([]byte, error) {
			if name != "/my/oc.conf" {
				return nil, errors.New("wrong file " + name)
			}
			return []byte(text), nil
		}
	}
	got, err := Parse([]string{"--config=/my/oc.conf"}, read("# comment\n\n  user = me\r\nserver= vpn.example\nquiet\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Server != "vpn.example" || !got.Quiet {
		t.Errorf("got %+v", got)
	}
	for _, line := range []string{"background", " script /x", "script=/x", "setuid = nobody", "interface\ttun0"} {
		if _, err := Parse([]string{"--config", "/my/oc.conf"}, read("user=me\n"+line+"\n")); err == nil {
			t.Errorf("%q in the file was accepted", line)
		}
	}
	if _, err := Parse([]string{"--config", "/my/oc.conf"}, read("#background\nbackgrounds\n")); err != nil {
		t.Error(err)
	}
}

func TestNameHasNoSecrets(t *testing.T) {
	for server, want := range map[string]string{
		"vpn.example":                             "vpn.example",
		"https://vpn.example:8443/group":          "https://vpn.example:8443/group",
		"https://me:secret@vpn.example/g?token=x": "https://vpn.example/g",
		"vpn.example?token=x#y":                   "vpn.example",
		"[2001:db8::1]:443":                       "[2001:db8::1]:443",
	} {
		if got := (Command{Server: server}).Name(); got != want {
			t.Errorf("name of %q is %q, want %q", server, got, want)
		}
	}
	if got := (Command{Server: "v", ConfigName: "Work"}).Name(); got != "Work" {
		t.Errorf("name %q", got)
	}
}

// TestDataRoundTrip: what is kept of one command makes it again, without the
// secrets.
func TestDataRoundTrip(t *testing.T) {
	first, err := Parse(strings.Fields("-u me --protocol=gp -C COOKIE --no-dtls vpn.example --usergroup g"), noFile)
	if err != nil {
		t.Fatal(err)
	}
	data := first.Data()
	if diff := cmp.Diff(map[string]any{
		"server":  "vpn.example",
		"options": []string{"--user=me", "--protocol=gp", "--no-dtls", "--usergroup=g"},
	}, data); diff != "" {
		t.Errorf("data (-want +got):\n%s", diff)
	}
	again, err := Parse(strings.Fields("--bus x --config-name Work -u other"), noFile)
	if err != nil {
		t.Fatal(err)
	}
	again, err = again.WithData(data, noFile)
	if err != nil {
		t.Fatal(err)
	}
	want := Command{
		Bus: "x", ConfigName: "Work", Server: "vpn.example",
		Args: []string{"--user=me", "--protocol=gp", "--no-dtls", "--usergroup=g", "-u", "other", "vpn.example"},
	}
	if diff := cmp.Diff(want, again, cmpopts.IgnoreUnexported(Command{})); diff != "" {
		t.Errorf("command (-want +got):\n%s", diff)
	}
}

// TestHostileData: another program of the user, or a damaged file, wrote it.
func TestHostileData(t *testing.T) {
	c := Command{ConfigName: "Work"}
	for _, data := range []map[string]any{
		nil,
		{"server": ""},
		{"server": 7},
		{"server": "--script=/x"},
		{"server": "v", "options": "--no-dtls"},
		{"server": "v", "options": []any{7}},
		{"server": "v", "options": []string{"--script=/x"}},
		{"server": "v", "options": []string{"--user"}},
		{"server": "v", "options": []string{"-b"}},
		{"server": "v", "options": []string{"other.example"}},
		{"server": "v", "options": []string{"--"}},
		{"server": "v", "options": []string{"--no-dtls=1"}},
		{"server": "v", "options": []string{"--bus=x"}},
	} {
		if got, err := c.WithData(data, noFile); err == nil {
			t.Errorf("%v gave %q", data, got.Args)
		}
	}
	if _, err := c.WithData(map[string]any{"server": "v", "options": []any{"--no-dtls"}}, noFile); err != nil {
		t.Error(err)
	}
}

func TestLongValuesAreNotKept(t *testing.T) {
	got, err := Parse([]string{"--useragent=" + strings.Repeat("x", 300), strings.Repeat("v", 300)}, noFile)
	if err != nil {
		t.Fatal(err)
	}
	if data := got.Data(); len(data) != 0 {
		t.Errorf("kept %v", data)
	}
}

// TestKnowsInstalledOpenconnect holds the table against the program itself:
// an option of it that we do not know would hide the server behind its value.
func TestKnowsInstalledOpenconnect(t *testing.T) {
	program, err := exec.LookPath("openconnect")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	help, _ := exec.Command(program, "--help").CombinedOutput() // its exit code is 1
	found := regexp.MustCompile(`(?m)^  (?:-(\w), |    )--([a-z0-9-]+)(=?)`).FindAllSubmatch(help, -1)
	if len(found) < 50 {
		t.Fatalf("only %d options in:\n%s", len(found), help)
	}
	table := options()
	for _, m := range found {
		short, name, value := string(m[1]), string(m[2]), len(m[3]) > 0
		if name == "help" || name == "version" {
			continue
		}
		opt, ok := table[name]
		var letter string
		if opt.short != 0 {
			letter = string(opt.short)
		}
		if !ok || opt.value != value || letter != short {
			t.Errorf("--%s -%s value=%v: the table has %+v", name, short, value, opt)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("vpn.example\x00-u\x00me")
	f.Add("-vvbS\x00--\x00x")
	f.Add("--config\x00f\x00--bus=\x00-")
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\x00")
		c, err := Parse(args, func(string) ([]byte, error) { return []byte(text), nil })
		if err != nil {
			return
		}
		for _, text := range c.keep {
			if len(text) > maxKept || !strings.HasPrefix(text, "--") {
				t.Fatalf("kept %q", text)
			}
		}
		if _, err := texts(c.keep); err != nil {
			t.Fatalf("what was kept cannot be read: %v", err)
		}
	})
}
