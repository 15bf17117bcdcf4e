package wire

import (
	"embed"
	"encoding/xml"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed *.xml
var files embed.FS

// Arg is one argument of a method or signal.
type Arg struct {
	Name      string `xml:"name,attr"`
	Type      string `xml:"type,attr"`
	Direction string `xml:"direction,attr"`
}

// Annotation is a note on a property, such as how it tells of its changes.
type Annotation struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

// Method of an interface.
type Method struct {
	Name string `xml:"name,attr"`
	Args []Arg  `xml:"arg"`
}

// In is the signature of the arguments that the caller passes.
func (m Method) In() string { return m.signature("in") }

// Out is the signature of the reply.
func (m Method) Out() string { return m.signature("out") }

func (m Method) signature(direction string) string {
	var b strings.Builder
	for _, a := range m.Args {
		if a.Direction == direction {
			b.WriteString(a.Type)
		}
	}
	return b.String()
}

// Signal of an interface.
type Signal struct {
	Name string `xml:"name,attr"`
	Args []Arg  `xml:"arg"`
}

// Property of an interface.
type Property struct {
	Name        string       `xml:"name,attr"`
	Type        string       `xml:"type,attr"`
	Access      string       `xml:"access,attr"`
	Annotations []Annotation `xml:"annotation"`
}

// Emits says whether PropertiesChanged tells of the property's changes.
func (p Property) Emits() bool {
	for _, a := range p.Annotations {
		if a.Name == "org.freedesktop.DBus.Property.EmitsChangedSignal" {
			return a.Value == "true"
		}
	}
	return true
}

// Interface as its XML describes it.
type Interface struct {
	Name       string     `xml:"name,attr"`
	Methods    []Method   `xml:"method"`
	Signals    []Signal   `xml:"signal"`
	Properties []Property `xml:"property"`

	// XML is the <interface> element as it stands in the file, for
	// Introspect.
	XML string `xml:"-"`
}

// Method by its name.
func (i Interface) Method(name string) (Method, bool) {
	for _, m := range i.Methods {
		if m.Name == name {
			return m, true
		}
	}
	return Method{}, false
}

// Property by its name.
func (i Interface) Property(name string) (Property, bool) {
	for _, p := range i.Properties {
		if p.Name == name {
			return p, true
		}
	}
	return Property{}, false
}

// Interfaces parses the embedded XML: the three interfaces of the service and
// the standard ones, by name. Each call returns a map of its own.
func Interfaces() (map[string]Interface, error) {
	names, err := fs.Glob(files, "*.xml")
	if err != nil {
		return nil, fmt.Errorf("cannot list the interface files: %w", err)
	}
	all := make(map[string]Interface)
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", name, err)
		}
		var node struct {
			Interfaces []Interface `xml:"interface"`
		}
		if err := xml.Unmarshal(text, &node); err != nil {
			return nil, fmt.Errorf("cannot parse %s: %w", name, err)
		}
		for i, part := range elements(string(text)) {
			node.Interfaces[i].XML = part
			all[node.Interfaces[i].Name] = node.Interfaces[i]
		}
	}
	return all, nil
}

// elements cuts the <interface> elements out of a file, comments included:
// what a reader of Introspect sees is what the author wrote.
func elements(text string) []string {
	const end = "</interface>\n"
	var out []string
	for {
		from := strings.Index(text, "  <interface ")
		if from < 0 {
			return out
		}
		to := strings.Index(text[from:], end)
		if to < 0 {
			return out
		}
		out = append(out, text[from:from+to+len(end)])
		text = text[from+to+len(end):]
	}
}
