// Gen writes docs/dbus.md, the reference of the D-Bus interfaces, from the
// introspection XML in dbus/wire with its comments:
//
//	go run ./docs/gen
//
// A test beside it fails when the page is out of date. The other tests here
// hold the rest of the documentation to the code: links, options, versions, and
// the names of tests.
package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	page, err := reference("dbus/wire")
	if err == nil {
		err = os.WriteFile("docs/dbus.md", []byte(page), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

const head = `# D-Bus reference

<!-- Written by "go run ./docs/gen" from dbus/wire/*.xml. Change those. -->

What each object answers to Introspect, in a form to read. [api.md](api.md) has
the meaning, the errors, the limits, and
[what this version does not have](api.md#what-this-version-does-not-have).
The files are installed in ` + "`/usr/share/dbus-1/interfaces`" + `.
`

// reference is the whole page, from the files in the folder.
func reference(folder string) (string, error) {
	var b strings.Builder
	b.WriteString(head)
	for _, name := range []string{"org.vpnprovider1.Manager", "org.vpnprovider1.Config", "org.vpnprovider1.Session", "standard"} {
		f, err := os.Open(filepath.Join(folder, name+".xml"))
		if err != nil {
			return "", err
		}
		node, err := parse(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return "", fmt.Errorf("cannot read %s: %w", name, err)
		}
		node.write(&b)
	}
	return b.String(), nil
}

// node is one file.
type node struct {
	comment    string
	interfaces []*iface
}

type iface struct {
	name    string
	members []*member
}

// member is a method, signal or property.
type member struct {
	kind, name, comment string
	args                []arg
	kindOf, changes     string // of a property: its type, and EmitsChangedSignal
}

type arg struct{ name, kind, direction string }

// parse reads what encoding/xml's own decoding drops: the comments. Each is
// about the element that follows it.
func parse(r io.Reader) (*node, error) {
	n, comment := &node{}, ""
	for d := xml.NewDecoder(r); ; {
		token, err := d.Token()
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return nil, err
		}
		switch t := token.(type) {
		case xml.Comment:
			comment = string(t)
		case xml.StartElement:
			if err := n.element(t, comment); err != nil {
				return nil, err
			}
			comment = ""
		}
	}
}

func (n *node) element(e xml.StartElement, comment string) error {
	attrs := make(map[string]string)
	for _, a := range e.Attr {
		attrs[a.Name.Local] = a.Value
	}
	switch e.Name.Local {
	case "node":
		n.comment = comment
	case "interface":
		n.interfaces = append(n.interfaces, &iface{name: attrs["name"]})
	case "method", "signal", "property":
		last := n.interfaces[len(n.interfaces)-1]
		last.members = append(last.members, &member{
			kind: e.Name.Local, name: attrs["name"], comment: comment, kindOf: attrs["type"], changes: "true",
		})
	case "arg":
		m := n.last()
		m.args = append(m.args, arg{attrs["name"], attrs["type"], attrs["direction"]})
	case "annotation":
		n.last().changes = attrs["value"]
	default:
		return fmt.Errorf("unknown element <%s>", e.Name.Local)
	}
	return nil
}

func (n *node) last() *member {
	members := n.interfaces[len(n.interfaces)-1].members
	return members[len(members)-1]
}

func (n *node) write(b *strings.Builder) {
	if len(n.interfaces) == 1 {
		fmt.Fprintf(b, "\n## %s\n", n.interfaces[0].name)
	} else {
		b.WriteString("\n## Standard interfaces\n")
	}
	b.WriteString(paragraphs(n.comment))
	for _, i := range n.interfaces {
		if len(n.interfaces) > 1 {
			fmt.Fprintf(b, "\n### %s\n", i.name)
		}
		i.write(b)
	}
}

func (i *iface) write(b *strings.Builder) {
	var properties []*member
	for _, m := range i.members {
		if m.kind == "property" {
			properties = append(properties, m)
			continue
		}
		fmt.Fprintf(b, "\n**%s** %s\n%s", m.name, m.signature(), paragraphs(m.comment))
	}
	if len(properties) == 0 {
		return
	}
	b.WriteString("\n| property | type | PropertiesChanged | |\n|---|---|---|---|\n")
	for _, p := range properties {
		tells := map[string]string{"true": "yes", "const": "never changes", "false": "no"}[p.changes]
		fmt.Fprintf(b, "| `%s` | `%s` | %s | %s |\n", p.name, p.kindOf, tells, strings.ReplaceAll(plain(p.comment), "|", `\|`))
	}
}

// signature is what a caller writes and gets: method (in) → (out).
func (m *member) signature() string {
	list := func(direction string) string {
		var texts []string
		for _, a := range m.args {
			if a.direction == direction {
				texts = append(texts, fmt.Sprintf("`%s` %s", a.kind, a.name))
			}
		}
		return "(" + strings.Join(texts, ", ") + ")"
	}
	if m.kind == "signal" {
		return list("") + ", a signal"
	}
	if out := list("out"); out != "()" {
		return list("in") + " → " + out
	}
	return list("in")
}

// paragraphs keeps the blank lines of a comment and nothing else of its shape.
func paragraphs(comment string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(comment, "\n\n") {
		if text := plain(part); text != "" {
			b.WriteString("\n" + text + "\n")
		}
	}
	return b.String()
}

// plain is a text in one line, with what Markdown would take for its own.
func plain(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.NewReplacer("<", `\<`, "*", `\*`, "_", `\_`).Replace(text)
}
