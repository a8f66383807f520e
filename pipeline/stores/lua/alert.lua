-- after: fence
-- Alert transitions, the new states and the position they stand for, as one. KEYS: lease, alert state, alerts.
-- ARGV: token, position, bound of the alerts stream, number of states, then (key, state or '') each, then transitions: the position
-- at which each was offered first, and its text. A replay arrives with a position that is not new: it changes nothing; and what was
-- offered at one that is not new has been published, though its holder was not told.
local stands = redis.call('HGET', KEYS[2], '@position')
local function is_new(position)
  return not stands or #stands < #position or (#stands == #position and stands < position)
end
if not is_new(ARGV[2]) then
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
for i = 5 + 2 * states, #ARGV, 2 do
  if is_new(ARGV[i]) then
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 't', ARGV[i + 1])
  end
end
redis.call('HSET', KEYS[2], '@position', ARGV[2])
return 1
