package tun

// OpenBy is Open with a hand in its steps.
func OpenBy(name string, try func(step string, do func() error) error) (*Device, error) {
	return openBy(name, try)
}
