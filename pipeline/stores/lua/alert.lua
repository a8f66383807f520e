-- after: fence
-- Alert transitions, the new states and the position they stand for, as one. KEYS: lease, alert state, alerts.
-- ARGV: token, position, bound of the alerts stream, number of states, then (key, state or '') each, then transitions.
-- A replay arrives with a position that is not new: it changes nothing.
local stands = redis.call('HGET', KEYS[2], '@position')
if stands and (#stands > #ARGV[2] or (#stands == #ARGV[2] and stands >= ARGV[2])) then
  return 0
end
local states = tonumber(ARGV[4])
for i = 1, states do
  local key, state = ARGV[3 + 2 * i], ARGV[4 + 2 * i]
  if state == '' then
    redis.call('HDEL', KEYS[2], key)
  else
    redis.call('HSET', KEYS[2], key, state)
  end
end
for i = 5 + 2 * states, #ARGV do
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 't', ARGV[i])
end
redis.call('HSET', KEYS[2], '@position', ARGV[2])
return 1
