package valid

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

const (
	maxDataDepth = 8
	maxDataBytes = 64 << 10 // as Size counts them

	// each is what an entry of a dictionary or list needs besides its key and
	// value, in memory and in messages.
	each = 32
)

// ErrTooLarge is what Data says of data that is right but too much.
var ErrTooLarge = errors.New("data is too large")

// Data refuses what a config cannot keep. It may hold D-Bus values as Go values:
// string, bool, byte, the sized integers from 16 bits, float64, slices of those,
// []any and map[string]any.
func Data(data map[string]any) error {
	if Size(data) > maxDataBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, maxDataBytes)
	}
	return checkValue("data", data, 0)
}

// Size is about what data needs in memory and in a message, in bytes: keys and
// values, and 32 for each entry of a dictionary or list.
func Size(data map[string]any) int { return sizeOf(data) }

func sizeOf(value any) (n int) {
	switch v := value.(type) {
	case nil:
		return 0
	case string:
		return len(v)
	case map[string]any:
		for key, entry := range v {
			n += each + len(key) + sizeOf(entry)
		}
		return n
	case []any:
		for _, entry := range v {
			n += each + sizeOf(entry)
		}
		return n
	case []string:
		for _, entry := range v {
			n += each + len(entry)
		}
		return n
	case []bool:
		return 4 * len(v) // as in a message
	}
	t := reflect.TypeOf(value)
	if t.Kind() == reflect.Slice {
		return int(t.Elem().Size()) * reflect.ValueOf(value).Len()
	}
	return int(t.Size())
}

func checkValue(where string, value any, depth int) error {
	if depth > maxDataDepth {
		return fmt.Errorf("%s is nested more than %d deep", where, maxDataDepth)
	}
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if err := Text("key in "+where, key); err != nil {
				return err
			}
			if err := checkValue(fmt.Sprintf("%s[%q]", where, key), v[key], depth+1); err != nil {
				return err
			}
		}
		return nil
	case []any:
		return checkEach(where, v, depth)
	case []string:
		return checkEach(where, v, depth)
	case string:
		return Text("value of "+where, v)
	}
	return checkScalar(where, reflect.TypeOf(value))
}

func checkEach[T any](where string, values []T, depth int) error {
	for i, v := range values {
		if err := checkValue(fmt.Sprintf("%s[%d]", where, i), v, depth+1); err != nil {
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
	return fmt.Errorf("%s has a type that a config cannot keep", where)
}
