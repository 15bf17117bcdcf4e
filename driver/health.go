package driver

import "slices"

// Problem is one thing that is wrong with the service or its host, or that a
// person should know when something does not work.
type Problem struct {
	Code     string
	Severity string
	Text     string // a sentence
}

// Severities of a Problem.
const (
	SeverityInfo    = "info"
	SeverityWarning = "warning"
	SeverityError   = "error"
)

// Codes of problems.
const (
	// ProblemLockdown: a lockdown is in force.
	ProblemLockdown = "lockdown"

	// ProblemOverridden: another program's routing rule is asked before ours.
	ProblemOverridden = "overridden"

	// ProblemNetwork: the network is not what it shall be.
	ProblemNetwork = "network"

	// ProblemBlind: changes of the network are not seen any more.
	ProblemBlind = "blind"
)

// SetHealth says what is wrong with the host now.
func (m *Manager) SetHealth(problems []Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problems = slices.Clone(problems)
	m.tellHealth()
}

// tellHealth tells of the health if it has changed. It must be called with mu
// held, after everything that changes it.
func (m *Manager) tellHealth() {
	var health []Problem
	if m.opts.Network.Locked() {
		health = append(health, m.lockdownProblem())
	}
	health = append(health, m.problems...)
	if slices.Equal(health, m.health) {
		return
	}
	m.health = health
	m.tell(HealthChanged{Problems: health})
}

// lockdownProblem must be called with mu held.
func (m *Manager) lockdownProblem() Problem {
	if _, byConfig := m.lockdowns(); byConfig {
		return Problem{ProblemLockdown, SeverityInfo, "a lockdown is in force: nothing leaves this host but through the tunnel"}
	}
	return Problem{ProblemLockdown, SeverityWarning, "a lockdown is in force whose config is gone: unlocking ends it"}
}
