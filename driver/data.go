package driver

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// Data is what a provider keeps with a config: D-Bus values as Go values, of
// the types string, bool, byte, the sized integers from 16 bits, float64,
// slices of those, []any and map[string]any. Every program of the owner's uid
// can read it.
type Data map[string]any

const (
	maxDataDepth = 8
	maxDataBytes = 64 << 10 // keys and values
)

// check refuses other types, and strings that must not reach logs and files.
func (d Data) check() error {
	left := maxDataBytes
	return checkValue("data", map[string]any(d), 0, &left)
}

// checkValue takes what the value needs from left.
func checkValue(where string, value any, depth int, left *int) error {
	if *left -= sizeOf(value); *left < 0 {
		return Errorf(KindLimitExceeded, "data is larger than %d bytes", maxDataBytes)
	}
	if depth > maxDataDepth {
		return Errorf(KindInvalidParameter, "%s is nested more than %d deep", where, maxDataDepth)
	}
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if err := checkText("key in "+where, key); err != nil {
				return err
			}
			*left -= len(key)
			if err := checkValue(fmt.Sprintf("%s[%q]", where, key), v[key], depth+1, left); err != nil {
				return err
			}
		}
		return nil
	case []any:
		return checkEach(where, v, depth, left)
	case []string:
		return checkEach(where, v, depth, left)
	case string:
		return checkText("value of "+where, v)
	}
	return checkScalar(where, reflect.TypeOf(value))
}

func checkEach[T any](where string, values []T, depth int, left *int) error {
	for i, v := range values {
		if err := checkValue(fmt.Sprintf("%s[%d]", where, i), v, depth+1, left); err != nil {
			return err
		}
	}
	return nil
}

func checkScalar(where string, t reflect.Type) error {
	scalar := t
	if t != nil && t.Kind() == reflect.Slice {
		scalar = t.Elem()
	}
	switch scalar {
	case reflect.TypeFor[bool](), reflect.TypeFor[byte](), reflect.TypeFor[int16](), reflect.TypeFor[uint16](),
		reflect.TypeFor[int32](), reflect.TypeFor[uint32](), reflect.TypeFor[int64](), reflect.TypeFor[uint64](),
		reflect.TypeFor[float64]():
		return nil
	}
	return Errorf(KindInvalidParameter, "%s has a type that a config cannot keep", where)
}

// sizeOf is about what a value needs by itself, in bytes; what a container
// holds is counted when its turn comes.
func sizeOf(value any) int {
	const container = 8
	switch v := value.(type) {
	case string:
		return container + len(v)
	case map[string]any, []any, []string, nil:
		return container
	}
	t := reflect.TypeOf(value)
	if t.Kind() == reflect.Slice {
		return container + int(t.Elem().Size())*reflect.ValueOf(value).Len()
	}
	return int(t.Size())
}
